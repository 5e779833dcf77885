"""Folders of recordings with their list, `metadata.csv` or `metadata.jsonl`, in a folder or in each of its splits.

The library's own reader of such folders needs a decoder beside the one that is used here.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distqat.data.sources.library.columns import SOUNDS
from distqat.errors import DataError

LISTS = ("metadata.csv", "metadata.jsonl")

FILE = "file_name"
"""Column of the list that names the recording, from where the list is."""


class Recordings(NamedTuple):
    """Columns, of which `audio` names files; and what names their content."""

    columns: dict[str, list[Any]]
    fingerprint: str


def read_folder(where: Path, split: str) -> Mapping[str, Recordings]:
    """By split; a list that lies in the folder itself is of `split`. Raises DataError, OSError."""
    if own := _list_in(where):
        return {split: _read(own)}
    lists = {
        folder.name: found for folder in sorted(where.iterdir()) if folder.is_dir() and (found := _list_in(folder))
    }
    if not lists:
        raise DataError(f"{where} has no {' or '.join(LISTS)}, with the columns {FILE} and transcription")
    return {name: _read(found) for name, found in lists.items()}


def _list_in(folder: Path) -> Path | None:
    return next((folder / name for name in LISTS if (folder / name).is_file()), None)


def _read(path: Path) -> Recordings:
    rows = _rows(path)
    if not rows or FILE not in rows[0]:
        raise DataError(f"{path} has no rows with the column {FILE}")
    if any(row.keys() != rows[0].keys() for row in rows):
        raise DataError(f"{path}: not all rows have the columns {', '.join(rows[0])}")
    files, told = [], hashlib.sha256(json.dumps(rows).encode())
    for row in rows:
        file = (path.parent / str(row[FILE])).resolve()
        if not file.is_relative_to(path.parent.resolve()) or not file.is_file():
            raise DataError(f"{path} names {row[FILE]}, which is not there")
        found = file.stat()
        told.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode())
        files.append(str(file))
    others = {name: [row[name] for row in rows] for name in rows[0] if name not in (FILE, SOUNDS[0])}
    return Recordings({SOUNDS[0]: files, **others}, told.hexdigest())


def _rows(path: Path) -> Sequence[dict[str, Any]]:
    with path.open(newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: each line is to be an object")
    return rows
