"""What a data set is to the rest: two parts, each a numbered list of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from distqat.model.shapes import DataShape

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
"""One batch: "inputs" and the targets, each with the samples along its first axis."""

Indices = npt.NDArray[np.int64]

TaskName = Literal["cv", "llm", "speech"]


class SourceShape(NamedTuple):
    """What is known of a data set before anything is read."""

    task: TaskName
    data: DataShape


class Split(Protocol):
    """One part of a data set: samples by index."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Indices) -> Arrays:
        """Those samples, in that order; new arrays."""
        ...


@runtime_checkable
class Augmented(Protocol):
    """A split that varies its samples in training, each by where it stands in the run's order."""

    def batch_at(self, indices: Indices, begin: int) -> Arrays:
        """Those samples as they are trained on at positions `begin`, `begin` + 1, ...: the same bytes each time."""
        ...


@dataclass(frozen=True)
class Source:
    """A data set with its held-out part; what is held out is the same in every run."""

    name: str
    task: TaskName
    shape: DataShape
    train: Split = field(repr=False)
    held_out: Split = field(repr=False)


class ArraySplit:
    """Samples that lie in arrays of equal length."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    def __len__(self) -> int:
        return len(self._arrays["inputs"])

    def batch(self, indices: Indices) -> Arrays:
        return {name: array[indices] for name, array in self._arrays.items()}


class WindowSplit:
    """Windows of T tokens of a text [n], which may lie in a file: sample i is tokens [i T, i T + T + 1), of which the
    labels are one further. If a token is not a byte, "bytes" [B] says how much text a sample is, on average."""

    def __init__(self, tokens: Array, sequence: int, bytes_per_token: float | None = None) -> None:
        self._tokens = tokens
        self._sequence = sequence
        self._bytes_per_token = bytes_per_token

    def __len__(self) -> int:
        return max(0, (len(self._tokens) - 1) // self._sequence)

    def batch(self, indices: Indices) -> Arrays:
        expect_indices(indices, len(self))
        places = indices[:, None] * self._sequence + np.arange(self._sequence + 1)
        windows = self._tokens[places].astype(np.int64)
        arrays = {"inputs": windows[:, :-1].copy(), "labels": windows[:, 1:].copy()}
        if self._bytes_per_token is not None:
            arrays["bytes"] = np.full(len(indices), self._sequence * self._bytes_per_token, np.float32)
        return arrays


def expect_indices(indices: Indices, length: int) -> None:
    """Raises IndexError unless all are of a split of that length."""
    if len(indices) and not 0 <= indices.min() <= indices.max() < length:
        raise IndexError(f"sample index out of range 0 to {length - 1}")


def training_batch(split: Split, indices: Indices, begin: int) -> Arrays:
    """The samples at positions `begin`, `begin` + 1, ... of the run's order, as they are trained on."""
    return split.batch_at(indices, begin) if isinstance(split, Augmented) else split.batch(indices)


def evaluation_batches(split: Split, batch: int) -> Iterator[Arrays]:
    """Every sample of a split once, in order, in batches of at most `batch`."""
    for begin in range(0, len(split), batch):
        yield split.batch(np.arange(begin, min(begin + batch, len(split)), dtype=np.int64))
