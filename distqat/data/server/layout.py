"""How samples lie in a slot: each array of a batch on its own, samples along its first axis. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distqat.data.sources.splits import Arrays
from distqat.errors import DataError

ALIGNMENT = 64
"""Bytes at which an array starts."""

PAGE = 4096
"""Slots are whole pages."""

MOST_SLOTS = 64
"""However small they are: what is made far ahead is of no use."""

LEAST_SLOTS = 4
"""One that is read, one that is filled, and room for requests out of the order."""

BATCHES = 4
"""Of a slot, if memory allows: a batch that does not end where a slot does is copied once."""

MOST_ROW_BYTES = 1 << 32
"""Of one sample; checked before a shape is believed."""


@dataclass(frozen=True)
class Column:
    """One array: its name, its element type as numpy writes it ("<f4"), and the shape of one sample."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def row_bytes(self) -> int:
        """Of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """All arrays of a batch, in their order."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, arrays: Arrays) -> Layout:
        """That of a batch. Raises DataError for elements that are no numbers."""
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub":
                raise DataError(f"array '{name}' of the data source has elements of type {array.dtype}, no numbers")
        return cls(tuple(Column(name, array.dtype.str, array.shape[1:]) for name, array in arrays.items()))

    def fault(self) -> str:
        """What is wrong with one that came from somewhere else; empty: nothing."""
        for column in self.columns:
            try:
                is_number = np.dtype(column.dtype).kind in "fiub"
            except TypeError:
                is_number = False
            if not is_number:
                return f"array '{column.name}' has elements of type '{column.dtype[:20]}'"
            if column.row_bytes > MOST_ROW_BYTES or len(column.shape) > 8:
                return f"array '{column.name}' has samples of shape {column.shape[:9]}"
        return "" if self.columns else "there are no arrays"

    @property
    def row_bytes(self) -> int:
        """Of one sample."""
        return sum(column.row_bytes for column in self.columns)

    def slot_bytes(self, rows: int) -> int:
        """Of a slot with so many samples, in whole pages."""
        return _ceil(sum(_ceil(column.row_bytes * rows, ALIGNMENT) for column in self.columns), PAGE)

    def places(self, rows: int) -> Iterator[tuple[Column, int]]:
        """Each array and where it begins in a slot of so many samples."""
        offset = 0
        for column in self.columns:
            yield column, offset
            offset += _ceil(column.row_bytes * rows, ALIGNMENT)

    def views(self, slot: memoryview, rows: int, first: int, count: int) -> Arrays:
        """Samples `first` to `first` + `count` of a slot of so many; they share its memory."""
        return {
            column.name: np.frombuffer(
                slot, column.dtype, count * math.prod(column.shape), offset + first * column.row_bytes
            ).reshape(count, *column.shape)
            for column, offset in self.places(rows)
        }

    def parse(self, payload: memoryview, count: int) -> Arrays:
        """So many samples that lie tightly, each array behind the other; they share the memory."""
        arrays: Arrays = {}
        offset = 0
        for column in self.columns:
            elements = count * math.prod(column.shape)
            arrays[column.name] = np.frombuffer(payload, column.dtype, elements, offset).reshape(count, *column.shape)
            offset += count * column.row_bytes
        return arrays

    def empty(self, count: int) -> Arrays:
        """New arrays for so many samples."""
        return {column.name: np.empty((count, *column.shape), column.dtype) for column in self.columns}


@dataclass(frozen=True)
class Sizes:
    """Of the ring: slots, samples in each, and samples that a worker makes in one piece."""

    slots: int
    rows: int
    part: int


def sizes(layout: Layout, batch: int, ring_bytes: int) -> Sizes:
    """For batches of so many samples, within so many bytes. Raises DataError where not even single samples fit."""

    def fitting(slots: int) -> int:
        """Samples of each of so many slots."""
        rows = ring_bytes // slots // max(layout.row_bytes, 1)
        while rows and layout.slot_bytes(rows) * slots > ring_bytes:
            rows -= max(1, rows // 64)
        return rows

    roomy, tight = fitting(2 * LEAST_SLOTS), fitting(LEAST_SLOTS)
    rows = min(BATCHES, roomy // batch) * batch if roomy >= batch else min(batch, tight)
    if rows < 1:
        raise DataError(
            f"data.ring_mib ({ring_bytes >> 20}) does not hold {LEAST_SLOTS} samples of {layout.row_bytes} bytes"
        )
    return Sizes(min(MOST_SLOTS, ring_bytes // layout.slot_bytes(rows)), rows, min(batch, rows))


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit) * unit
