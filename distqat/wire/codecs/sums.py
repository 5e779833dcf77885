"""Adding up what was decoded, for codecs that have no loop of their own for it."""

from __future__ import annotations

from distqat.wire.codecs.codec import Codec, Floats
from distqat.wire.codecs.loops import add_floats
from distqat.wire.codecs.memory import CHUNK, SCRATCH


def add_decoded(codec: Codec, data: memoryview, elements: int, begin: int, weight: float, total: Floats) -> float:
    """See Codec.add_part. Chunk by chunk through scratch memory."""
    squares = 0.0
    for at in range(0, len(total), CHUNK):
        place = total[at : at + CHUNK]
        values = SCRATCH.block[: len(place)]
        codec.decode_part(data, elements, begin + at, values)
        squares += add_floats(values, weight, place)
    return squares
