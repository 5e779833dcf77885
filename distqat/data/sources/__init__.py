"""The data sets: from files to batches of numpy arrays. No torch here.

`splits` says what a source is, `digits` and `pydocs` are the ones there are. Opening one reads files and takes up to
two seconds: a daemon does it in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distqat.data.sources import digits, pydocs
from distqat.data.sources.splits import Arrays, ArraySplit, Source, Split, WindowSplit, evaluation_batches
from distqat.errors import DataError
from distqat.sections import DataSection

__all__ = ["ArraySplit", "Arrays", "Source", "Split", "WindowSplit", "evaluation_batches", "names", "open_source"]

_SOURCES: Mapping[str, Callable[[DataSection], Source]] = {"digits": digits.load, "pydocs": pydocs.load}


def names() -> list[str]:
    """Every source."""
    return sorted(_SOURCES)


def open_source(section: DataSection) -> Source:
    """The data set of that section. Raises DataError when it is unknown or cannot be read."""
    load = _SOURCES.get(section.source)
    if load is None:
        raise DataError(f"unknown data source '{section.source}'; there are: {', '.join(names())}")
    source = load(section)
    if not len(source.train) or not len(source.held_out):
        raise DataError(
            f"data source '{section.source}' has no samples of {section.sequence} tokens; lower data.sequence"
        )
    return source
