"""The messages about checkpoints on the control service: bytes to dataclasses and back, and their method."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.ids import RunId
from distqat.pb import control_pb2 as pb
from distqat.roles.checkpoint.words import Load
from distqat.roles.status import ExpertStatus
from distqat.rpc import mirror
from distqat.rpc.transport import Method

LOAD = Method("distqat.v1.Control", "Load")


@dataclass(frozen=True)
class LoadRequest:
    """Asks an expert to take a stage out of a checkpoint."""

    run: RunId
    stage: int
    load: Load

    def encode(self) -> bytes:
        """As bytes."""
        return mirror.encode(self, pb.LoadRequest)

    @classmethod
    def decode(cls, data: bytes) -> LoadRequest:
        """From bytes. Raises MessageError."""
        return mirror.decode(cls, data, pb.LoadRequest)


@dataclass(frozen=True)
class LoadReply:
    """What the expert does now."""

    expert: ExpertStatus

    def encode(self) -> bytes:
        """As bytes."""
        return mirror.encode(self, pb.LoadReply)

    @classmethod
    def decode(cls, data: bytes) -> LoadReply:
        """From bytes. Raises MessageError."""
        return mirror.decode(cls, data, pb.LoadReply)
