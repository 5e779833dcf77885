"""Text: tokenised and packed once on each machine into a file, of which windows are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from distqat.data.sources.library import cache, columns
from distqat.data.sources.library.packing import BYTES, Packed, Packer, pack, read
from distqat.data.sources.library.tables import Table, open_tables
from distqat.data.sources.splits import Array, Split, WindowSplit
from distqat.data_sections import DatasetSection
from distqat.errors import DataError

ROWS = 256
"""That are tokenised together, so that memory holds no more of a text than they are."""

_VERSION = 2
"""Of what is in a file; another one makes it anew."""


def load(section: DatasetSection, sequence: int) -> tuple[Split, Split]:
    """Windows of so many tokens: what is trained on and what is held out, its end if there is no other. Raises
    DataError."""
    tables = open_tables(section)
    packer = Packer.open(section.tokenizer, section.classes)

    def split(tokens: Array, packed: Packed) -> Split:
        # Where each byte is a token nobody needs to be told how many they are.
        return WindowSplit(tokens, sequence, None if section.tokenizer == BYTES else packed.bytes_per_token)

    train = _packed(tables.train, section, packer)
    if tables.held_out is not None:
        held_out = _packed(tables.held_out, section, packer)
        return split(train.tokens, train), split(held_out.tokens, held_out)
    end = _end(len(train.tokens), section.held_out, sequence)
    return split(train.tokens[: end + 1], train), split(train.tokens[end:], train)


def _end(length: int, share: float, sequence: int) -> int:
    """Of the tokens to train on, where that share of all windows is held out behind them. The token there is the last
    label of the one part, and the first token of the other."""
    windows = max(0, (length - 1) // sequence)
    held_out = min(max(1, round(windows * share)), max(0, windows - 1))
    return (windows - held_out) * sequence


def _packed(table: Table, section: DatasetSection, packer: Packer) -> Packed:
    """All tokens of that part, which lie in a file. Raises DataError."""
    column = columns.find(table.rows, "input", section.input, columns.TEXTS)
    key = {"data": table.fingerprint, "column": column, "tokens": packer.digest, "version": _VERSION}
    path = cache.once("tokens", key, partial(pack, _texts(table.rows, column), packer))
    packed = read(path, packer.dtype)
    if not len(packed.tokens):
        raise DataError(f"{section.path}: column '{column}' holds no text")
    return packed


def _texts(rows: Any, column: str) -> Iterator[list[str]]:
    """The rows, some at a time."""
    for some in rows.select_columns([column]).iter(batch_size=ROWS):
        texts = some[column]
        if not all(text is None or isinstance(text, str) for text in texts):
            odd = next(text for text in texts if not isinstance(text, str | None))
            raise DataError(f"column '{column}' holds {type(odd).__name__}, not text")
        yield [text for text in texts if text]
