"""The peer of `data`: torch's DataLoader in a process of its own. Run as a module it prints the rate."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bench.jpegs import PICTURES, Jpegs
from distqat.data.sampler import Sampler
from distqat.data.sources.splits import Arrays

Tensors = dict[str, torch.Tensor]


class Pictures(Dataset[Arrays]):
    """A whole batch at once, so that nothing has to be collated."""

    def __init__(self, batch: int, seed: int) -> None:
        self._jpegs = Jpegs(PICTURES)
        self._sampler = Sampler(PICTURES, seed)
        self._batch = batch

    def __getitem__(self, number: int) -> Arrays:
        return self._jpegs.batch(self._sampler.indices(number * self._batch, (number + 1) * self._batch))


def tensors(batch: Any) -> Tensors:
    """They share the memory."""
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def load(batch: int, workers: int, batches: int) -> float:
    """Batches a second, from the first one on."""
    loader: DataLoader[Arrays] = DataLoader(
        Pictures(batch, 7), batch_size=None, sampler=range(batches + 1), num_workers=workers, collate_fn=tensors
    )
    began = 0.0
    for taken in loader:
        began = began or time.perf_counter()
        assert len(taken["inputs"]) == batch
    return batches / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.stdout.write(f"{load(*map(int, sys.argv[1:4]))}\n")
