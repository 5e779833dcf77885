"""What the bytes of a tensor mean.

In this order: `codec` (what each of them can do), `plain` (elements as they lie in memory), `half` (bf16, fp16),
`blocks` (int8, int4: a scale for each block), which are computed by `kernels` on a CPU and by `device` elsewhere;
`pairs` is int2, for rounds only; `layout` says how their bytes lie, and `memory` is where all of this works; `learned`
is none of these, and carries what a stage has rounded itself. tests/golden holds the bytes still.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from distqat.errors import ConfigError
from distqat.wire.codecs.blocks import BlockCodec
from distqat.wire.codecs.codec import Codec
from distqat.wire.codecs.half import HalfCodec
from distqat.wire.codecs.layout import INT4, INT8
from distqat.wire.codecs.pairs import PairCodec
from distqat.wire.codecs.plain import NoneCodec

__all__ = ["Codec", "find", "names"]

_ALL: tuple[Codec, ...] = (
    NoneCodec(),
    HalfCodec("bf16", torch.bfloat16),
    HalfCodec("fp16", torch.float16),
    BlockCodec("int8", INT8),
    BlockCodec("int4", INT4),
    PairCodec(),
)
_CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}


def names() -> list[str]:
    """Every codec, for the settings tree and for messages; a pipeline has all but int2."""
    return sorted(_CODECS)


def find(name: str) -> Codec:
    """The codec of that name; raises ConfigError."""
    try:
        return _CODECS[name]
    except KeyError:
        raise ConfigError(f"unknown codec '{name}'; there are: {', '.join(names())}") from None
