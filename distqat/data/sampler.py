"""The run's order of samples: endless, a new permutation every epoch, the same on every machine. Pure."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from distqat.errors import DataError

Indices = npt.NDArray[np.int64]


def budget(epochs: float, num_samples: int) -> int:
    """Positions that so many epochs take, at least one."""
    return max(1, math.ceil(round(epochs * num_samples, 6)))


def progress(begin: int, total: int) -> float:
    """Part of the run's budget, `total` positions, that lies before `begin`, 0 to 1: what learning rates follow.

    It depends on the samples only, so it is the same whoever trains on them, and when they are trained on again.
    """
    return min(max(begin / total, 0.0), 1.0)


@lru_cache(maxsize=4)
def permutation(num_samples: int, seed: int, epoch: int) -> Indices:
    """The order of one epoch.

    Sorted raw draws rather than numpy's own shuffle: numpy promises that raw draws never change between versions,
    and two trainers with different versions must agree, or samples would be lost and doubled.
    """
    draws = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(num_samples)
    order = np.argsort(draws, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


class Sampler:
    """Maps positions of the run's order to indices of training samples. Raises DataError when there are none."""

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise DataError("there are no samples to draw from")
        self.num_samples = num_samples
        self.seed = seed

    def __repr__(self) -> str:
        return f"<Sampler of {self.num_samples} samples, seed {self.seed}>"

    def indices(self, begin: int, end: int) -> Indices:
        """Sample indices at positions [begin, end), which may lie in several epochs."""
        parts = []
        while begin < end:
            epoch, place = divmod(begin, self.num_samples)
            stop = min(self.num_samples, place + end - begin)
            parts.append(permutation(self.num_samples, self.seed, epoch)[place:stop])
            begin += stop - place
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
