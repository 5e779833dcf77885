"""Which columns of a table hold inputs and targets, and labels as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distqat.data.sources.splits import Indices
from distqat.errors import DataError

IMAGES = ("image", "img", "images", "picture", "pixels")
LABELS = ("label", "labels", "fine_label", "class", "target")
TEXTS = ("text", "content", "document", "body")
SOUNDS = ("audio", "sound", "speech", "file")
TRANSCRIPTS = ("transcription", "transcript", "text", "sentence", "normalized_text")


def find(rows: Any, setting: str, named: str, usual: Sequence[str]) -> str:
    """The column that the setting names, or the first of the usual ones that is there. Raises DataError."""
    there = list(rows.column_names)
    for name in [named] if named else usual:
        if name in there:
            return name
    what = f"'{named}'" if named else f"of the usual names ({', '.join(usual)})"
    raise DataError(f"dataset.{setting}: there is no column {what}; there are: {', '.join(there)}")


def labels(tables: Sequence[Any], column: str, classes: int) -> list[Indices]:
    """The labels of each table as numbers from 0; words are numbered in the order of the alphabet. Raises DataError
    when there are not as many as `classes`."""
    found = [_values(rows, column) for rows in tables]
    feature = tables[0].features[column]
    names = getattr(feature, "names", None)
    if names is not None:
        _expect(len(names), classes, column)
    elif isinstance(found[0][0] if found[0] else 0, str):
        words = {word: number for number, word in enumerate(sorted({str(word) for word in found[0]}))}
        _expect(len(words), classes, column)
        strange = next((word for values in found for word in values if word not in words), None)
        if strange is not None:
            raise DataError(f"column '{column}' has the label {strange!r} in the held-out part only")
        found = [[words[word] for word in values] for values in found]
    return [_numbers(values, column, classes) for values in found]


def _values(rows: Any, column: str) -> list[Any]:
    return list(rows.with_format(None)[column])


def _numbers(values: list[Any], column: str, classes: int) -> Indices:
    numbers = np.array([_number(value, column) for value in values], np.int64)
    if len(numbers) and numbers.min() < 0:
        raise DataError(f"column '{column}' holds the label {numbers.min()}; labels count from 0")
    if len(numbers) and numbers.max() >= classes:
        _expect(int(numbers.max()) + 1, classes, column)
    return numbers


def _number(value: Any, column: str) -> int:
    """A whole number, also one that is kept as a float."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != value or number.bit_length() > 63:
        raise DataError(f"column '{column}' holds {value!r}, which is no label")
    return number


def _expect(found: int, classes: int, column: str) -> None:
    if found != classes:
        raise DataError(f"column '{column}' has {found} labels, dataset.classes says {classes}")
