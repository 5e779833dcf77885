"""Every random number of a run comes from its seed and a path of names, never from the process.

So any cut of a model, and any peer that computes a microbatch, draws the same numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import xxhash

_BORROWED = threading.Lock()
"""Held by the one thread that has the process's generators."""


def derive(seed: int, *path: int | str) -> int:
    """A seed of 63 bits for one purpose, such as `derive(7, "initial", "resnet", 3)`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *path))
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A new CPU generator, seeded for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *path))


@contextmanager
def borrowed(device: torch.device, seed: int) -> Iterator[None]:
    """The process's own generators of torch (for the CPU and that device) and numpy, seeded; afterwards as they were.

    For modules that draw from nothing else. Threads that borrow wait for each other.
    """
    with _BORROWED:
        generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            generators.append(torch.cuda.default_generators[index])
        states, arrays = [generator.get_state() for generator in generators], np.random.get_state(legacy=False)
        try:
            for generator in generators:
                generator.manual_seed(seed)
            np.random.seed(seed % (1 << 32))
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            np.random.set_state(arrays)


class Dropout(torch.nn.Module):
    """Dropout that draws from the generator of its block and not from the process.

    The mask is drawn on the CPU whatever the device, so that a GPU and a CPU drop the same elements.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator = torch.Generator()  # Seeded by the stage before each forward of the block.

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or self.probability == 0.0:
            return hidden
        keep = 1.0 - self.probability
        # In fp32 whatever comes in, so that 1 / keep is not rounded to the few bits of bf16.
        mask = torch.empty(hidden.shape).bernoulli_(keep, generator=self.generator).div_(keep)
        return (hidden * mask.to(hidden.device)).to(hidden.dtype)


def dropouts(block: torch.nn.Module) -> list[Dropout]:
    """The dropout modules of a block, in order; those of probability 0 draw nothing and are left out."""
    return [module for module in block.modules() if isinstance(module, Dropout) and module.probability > 0.0]


def seed_dropouts(modules: list[Dropout], seed: int, *path: int | str) -> None:
    """Seed the dropouts of one block for one microbatch."""
    for number, module in enumerate(modules):
        module.generator.manual_seed(derive(seed, *path, number))
