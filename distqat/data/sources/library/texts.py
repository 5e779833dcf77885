"""Text: tokenised and packed once on each machine into a file, of which windows are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from distqat.data.sources.library import cache, columns
from distqat.data.sources.library.packing import Packer, pack, read
from distqat.data.sources.library.tables import Table, open_tables
from distqat.data.sources.splits import Array, Split, WindowSplit
from distqat.data_sections import DatasetSection
from distqat.errors import DataError

ROWS = 256
"""That are tokenised together, so that memory holds no more of a text than they are."""

_VERSION = 1
"""Of what is in a file; another one makes it anew."""


def load(section: DatasetSection, sequence: int) -> tuple[Split, Split]:
    """Windows of so many tokens: what is trained on and what is held out, its end if there is no other. Raises
    DataError."""
    tables = open_tables(section)
    packer = Packer.open(section.tokenizer, section.classes)
    train = _tokens(tables.train, section, packer)
    if tables.held_out is not None:
        return WindowSplit(train, sequence), WindowSplit(_tokens(tables.held_out, section, packer), sequence)
    windows = max(0, (len(train) - 1) // sequence)
    held_out = min(max(1, round(windows * section.held_out)), max(0, windows - 1))
    # The token behind the last window is its last label, and the first one of what is held out.
    end = (windows - held_out) * sequence
    return WindowSplit(train[: end + 1], sequence), WindowSplit(train[end:], sequence)


def _tokens(table: Table, section: DatasetSection, packer: Packer) -> Array:
    """All tokens of that part, which lie in a file. Raises DataError."""
    column = columns.find(table.rows, "input", section.input, columns.TEXTS)
    key = {"data": table.fingerprint, "column": column, "tokens": packer.digest, "version": _VERSION}
    path = cache.once("tokens", key, partial(pack, _texts(table.rows, column), packer))
    tokens = read(path, packer.dtype)
    if not len(tokens):
        raise DataError(f"{section.path}: column '{column}' holds no text")
    return tokens


def _texts(rows: Any, column: str) -> Iterator[list[str]]:
    """The rows, some at a time."""
    for some in rows.select_columns([column]).iter(batch_size=ROWS):
        texts = some[column]
        if not all(text is None or isinstance(text, str) for text in texts):
            odd = next(text for text in texts if not isinstance(text, str | None))
            raise DataError(f"column '{column}' holds {type(odd).__name__}, not text")
        yield [text for text in texts if text]
