"""Chance that is the same on every machine."""

from __future__ import annotations

import numpy as np


class Draws:
    """Numbers that depend on the key alone. Made of raw draws, as the sampler's are: numpy promises that those never
    change between versions, and does not promise it of what its generators make of them."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, low: float, high: float) -> float:
        """In [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """In [low, high)."""
        return low + (int(self._bits.random_raw()) * (high - low) >> 64)
