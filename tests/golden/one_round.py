"""Rounds with every codec, and what they end with: a program that `test_vector_widths` runs on different processors.

Nothing in it may depend on them: numbers are drawn as integers, and then only operated on by the code that is tested.
"""

from __future__ import annotations

import json
import sys
from typing import get_args

import numba
import numpy as np
import torch

from distqat.averaging.outer import OuterState, Part
from distqat.averaging.phases import Phase
from distqat.averaging.spans import Shape
from distqat.compiled import FLOATS
from distqat.sections import RoundCodec
from tests.averaging.owners import Owners

SHAPES = (Shape(30_000, 31_111), Shape(9_000, 9_000))
PLAIN = Phase(True, 1, 1.0, 0.0, (0, 1))
DILOCO = Phase(False, 10, 0.7, 0.9, (0, 1))
SAMPLES = (96, 160, 32)
FACTORS = (1.0, 0.3, 1.0)
CODECS = tuple(codec for codec in get_args(RoundCodec) if codec != "auto")


def numbers(elements: int, seed: int) -> torch.Tensor:
    """Of about 1, heavy-tailed, with all bits in use."""
    drawn = np.random.default_rng(seed).integers(1, 1 << 24, (2, elements)).astype(np.float32)
    signs = np.random.default_rng(seed + 1).integers(0, 2, elements).astype(np.float32) * 2 - 1
    return torch.from_numpy(drawn[0] / drawn[1] * signs)


def rounds(codec: str) -> OuterState:
    """A plain round, then one of DiLoCo with a contribution that is scaled down."""
    parts = [Part.of(numbers(shape.num_elements, 7), numbers(shape.num_parameters, 8)) for shape in SHAPES]
    state = OuterState.of(parts, 0)
    for how, factors in ((PLAIN, ()), (DILOCO, FACTORS)):
        locals_ = [state.anchor + numbers(state.num_elements, seed) for seed in (10, 20, 30)]
        state = Owners(state, locals_, SAMPLES, how, codec, factors).after()
    return state


def width() -> int:
    """Bits of the vectors that compiled loops use."""

    @numba.njit([(FLOATS,)])
    def double(values: np.ndarray) -> None:
        for at in range(len(values)):
            values[at] += values[at]

    (code,) = double.inspect_asm().values()
    return next((bits for bits, name in ((512, "zmm"), (256, "ymm")) if name in code), 128)


def main() -> None:
    """Print the digests by codec."""
    torch.set_num_threads(int(sys.argv[1]))
    digests = {codec: rounds(codec).digest for codec in CODECS}
    features: dict[str, bool] = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    found = {
        "torch": torch.backends.cpu.get_cpu_capability(),
        "numpy": sorted(name for name, is_there in features.items() if is_there),
        "loops": width(),
        "digests": digests,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
