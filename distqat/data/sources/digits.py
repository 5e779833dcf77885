"""scikit-learn's handwritten digits: 1797 real images of 8 x 8 pixels, ten classes.

The file is read where scikit-learn keeps it, since importing scikit-learn takes seconds and 100 MB, in every daemon.
"""

from __future__ import annotations

import gzip
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from distqat.config import RunConfig
from distqat.data.sources.splits import Array, ArraySplit, Indices, Source, SourceShape
from distqat.errors import DataError
from distqat.model.shapes import DataShape

HELD_OUT = 0.2
"""Part of every class that is never trained on."""

_CLASSES = 10
_BRIGHTEST = 16.0


def shape(config: RunConfig) -> SourceShape:
    """Grey images of 8 x 8 pixels, whatever the settings say."""
    return SourceShape("cv", DataShape("image", (1, 8, 8), _CLASSES))


def load(config: RunConfig) -> Source:
    """Images float32 [n, 1, 8, 8] in [-1, 1], labels int64 [n]. Raises DataError without scikit-learn."""
    table = _read(_file())
    images = (table[:, :-1] / (_BRIGHTEST / 2) - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    is_held_out = np.zeros(len(labels), bool)
    is_held_out[held_out(labels)] = True
    train, rest = (
        ArraySplit({"inputs": images[chosen], "labels": labels[chosen]}) for chosen in (~is_held_out, is_held_out)
    )
    return Source("digits", *shape(config), train, rest)


def held_out(labels: Array) -> Indices:
    """Indices of the held-out samples: the same share of every class, the same ones in every run."""
    draws = np.random.PCG64(np.random.SeedSequence(_CLASSES)).random_raw(len(labels))
    chosen = []
    for label in range(_CLASSES):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(draws[members], kind="stable")]
        chosen.append(order[: round(len(order) * HELD_OUT)])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _file() -> Path:
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("the data source 'digits' comes with scikit-learn: pip install 'distqat[data]'")
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _read(file: Path) -> Array:
    """64 brightnesses and the label in each row."""
    try:
        with gzip.open(file, "rt") as lines:
            table = np.array([line.split(",") for line in lines], np.float64)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read the digits in {file}: {error}") from None
    if table.ndim != 2 or table.shape[1] != 65:
        raise DataError(f"{file} is not the table of digits")
    return table
