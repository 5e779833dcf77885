"""zstd itself: does what a `Compression` decides, with the clock in hand, and undoes what another did."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import zstandard

from distqat.errors import MessageError
from distqat.wire.compression import Compression, Trial

PIECES = 4
"""Places of a tensor that a sample is taken from,"""

PIECE_BYTES = 64 << 10
"""and bytes from each."""


class _Contexts(threading.local):
    """The working memory of zstd, which no two threads may share."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_CONTEXTS = _Contexts()


def compress(data: memoryview, compression: Compression) -> memoryview | None:
    """The bytes made smaller, or None if they shall travel as they are. `compression` learns from it."""
    plan = compression.plan(len(data))
    if plan.probe:
        compression.tried(list(_probe(data, plan.probe)))
        plan = compression.plan(len(data))
    if plan.level is None:
        return None
    small, seconds = _compress(data, plan.level)
    compression.tried([Trial(plan.level, len(data), len(small), seconds)])
    return memoryview(small) if len(small) < len(data) else None


def decompress(data: memoryview, size: int) -> memoryview:
    """Exactly `size` bytes; raises MessageError, and before anything is allocated if they are to be others."""
    try:
        if zstandard.frame_content_size(data) != size:
            raise MessageError(f"compressed bytes that do not become {size}")
        # zstd trusts what the frame says, which was checked, and stops there.
        return memoryview(_CONTEXTS.decompressor.decompress(data, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise MessageError(f"compressed bytes that cannot be read: {error}") from None


def _probe(data: memoryview, levels: tuple[int, ...]) -> Iterator[Trial]:
    sample = _sample(data)
    for level in levels:
        small, seconds = _compress(sample, level)
        began = time.thread_time()
        _CONTEXTS.decompressor.decompress(small)
        yield Trial(level, len(sample), len(small), seconds, time.thread_time() - began)


def _compress(data: memoryview, level: int) -> tuple[bytes, float]:
    """The bytes, and seconds of this thread's work: who else wants the processor says nothing of zstd."""
    compressor = _CONTEXTS.compressors.get(level)
    if compressor is None:
        compressor = _CONTEXTS.compressors[level] = zstandard.ZstdCompressor(level=level)
    began = time.thread_time()
    small = compressor.compress(data)
    return small, time.thread_time() - began


def _sample(data: memoryview) -> memoryview:
    """Bytes from several places: what a codec writes first may be unlike the rest."""
    if len(data) <= PIECES * PIECE_BYTES:
        return data
    apart = (len(data) - PIECE_BYTES) // (PIECES - 1)
    return memoryview(b"".join(data[begin : begin + PIECE_BYTES] for begin in range(0, PIECES * apart, apart)))
