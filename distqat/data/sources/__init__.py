"""The data sets: from files to batches of numpy arrays. No torch here.

`splits` says what a source is, `digits` and `pydocs` come with the machine, and `library` reads what `dataset` names.
What a sample looks like says `source_shape`, from the settings alone. To open a source reads files: a daemon does it
in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from distqat.config import RunConfig
from distqat.data.sources import digits, library, pydocs
from distqat.data.sources.splits import (
    Arrays,
    ArraySplit,
    Source,
    SourceShape,
    Split,
    WindowSplit,
    evaluation_batches,
    training_batch,
)
from distqat.errors import DataError

__all__ = [
    "ArraySplit",
    "Arrays",
    "Source",
    "SourceShape",
    "Split",
    "WindowSplit",
    "evaluation_batches",
    "names",
    "open_source",
    "source_shape",
    "training_batch",
]


class _Kind(NamedTuple):
    shape: Callable[[RunConfig], SourceShape]
    load: Callable[[RunConfig], Source]


_SOURCES: Mapping[str, _Kind] = {
    "datasets": _Kind(library.shape, library.load),
    "digits": _Kind(digits.shape, digits.load),
    "pydocs": _Kind(pydocs.shape, pydocs.load),
}


def names() -> list[str]:
    """Every source."""
    return sorted(_SOURCES)


def source_shape(config: RunConfig) -> SourceShape:
    """What the run's samples look like, and the task: of the settings alone, nothing is read. Raises DataError."""
    return _find(config).shape(config)


def open_source(config: RunConfig) -> Source:
    """The run's data set. Raises DataError when it is unknown, cannot be read, or is not of the shape that the settings
    say."""
    source = _find(config).load(config)
    if not len(source.train) or not len(source.held_out):
        part = "held-out samples" if len(source.train) else "samples to train on"
        hint = f" of {config.data.sequence} tokens; lower data.sequence" if source.task == "llm" else ""
        raise DataError(f"data source '{source.name}' has no {part}{hint}")
    return source


def _find(config: RunConfig) -> _Kind:
    kind = _SOURCES.get(config.data.source)
    if kind is None:
        raise DataError(f"unknown data source '{config.data.source}'; there are: {', '.join(names())}")
    return kind
