"""The messages of the copies service: bytes to dataclasses and back, and its method."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.errors import MessageError
from distqat.ids import RunId, StageIndex
from distqat.pb import state_pb2 as pb
from distqat.roles.copies.copy import CopyManifest
from distqat.rpc import mirror
from distqat.rpc.transport import Lane, Method
from distqat.wire import frames
from distqat.wire.frames import Chunk

SERVICE = "distqat.v1.Copies"
TAKE = Method(SERVICE, "Take", Lane.BULK)


@dataclass(frozen=True)
class CopyRequest:
    """Asks for a copy; `is_last`: the asker takes the seat over."""

    run: RunId
    stage: StageIndex
    is_last: bool = False

    def encode(self) -> bytes:
        """As bytes."""
        return mirror.encode(self, pb.CopyRequest)

    @classmethod
    def decode(cls, data: bytes) -> CopyRequest:
        """From bytes. Raises MessageError."""
        return mirror.decode(cls, data, pb.CopyRequest)


@dataclass(frozen=True)
class CopyHeader:
    """Of one frame; only the first says what the copy is."""

    copy: CopyManifest | None
    chunk: Chunk
    hash: bytes


def frame(header: CopyHeader, *payload: memoryview) -> bytes:
    """A header and the views of its chunk, as one message."""
    return frames.join(mirror.encode(header, pb.CopyHeader), *payload)


def unframe(data: bytes | None) -> tuple[CopyHeader, memoryview]:
    """Header and chunk. Raises MessageError, also when there is no further message."""
    if data is None:
        raise MessageError("the stream ended before the whole copy was there")
    header, payload = frames.split(data)
    return mirror.decode(CopyHeader, header, pb.CopyHeader), payload
