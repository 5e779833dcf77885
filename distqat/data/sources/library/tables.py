"""Rows of a data set: files of this machine, or a name on the hub. Only here is the library asked for them."""

from __future__ import annotations

import glob
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np

from distqat.data.sampler import permutation
from distqat.data.sources.library.cache import folder
from distqat.data.sources.library.recordings import read_folder
from distqat.data.sources.splits import Indices
from distqat.data_sections import DatasetSection
from distqat.errors import DataError

log = logging.getLogger(__name__)

HUB_TIMEOUT = 5.0
"""Seconds until a hub that does not answer counts as away."""

_FORMATS = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow",), "arrow"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".txt", ".text", ".md"), "text"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"), "imagefolder"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".au"), "audiofolder"),
}
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_FOLDERS = ("imagefolder", "audiofolder")


class Table(NamedTuple):
    """One part of a data set: a `datasets.Dataset`, which lies in files, and what names its content."""

    rows: Any
    fingerprint: str


class Tables(NamedTuple):
    """What is trained on, and what is for evaluations; the latter None when it is to be cut off the former."""

    train: Table
    held_out: Table | None


def open_tables(section: DatasetSection) -> Tables:
    """The rows of both parts. Raises DataError."""
    where = _local(section.path)
    if where is None:
        expect_hub()
    parts = [section.split, *([section.held_out_split] if section.held_out_split else [])]
    with _library_errors(section.path):
        import datasets

        datasets.disable_progress_bars()
        found = _load_local(where, section) if where is not None else _load_hub(section)
    tables = []
    for part in parts:
        if part not in found:
            raise DataError(f"{section.path} has no split '{part}'; there are: {', '.join(found)}")
        tables.append(found[part])
    return Tables(tables[0], tables[1] if section.held_out_split else None)


def split_rows(number: int, share: float) -> tuple[Indices, Indices]:
    """Rows to train on and rows to hold out, the same ones in every run; at least one of each, if there are two."""
    order = permutation(number, 0, 0)
    held_out = min(max(1, round(number * share)), number - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


@contextmanager
def _library_errors(path: str) -> Iterator[None]:
    """What the library raises, as DataError: of files, of their content, of the network."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"the data source 'datasets' needs a library: {error}; pip install 'distqat[data]'") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        cause = error.__cause__ or error
        raise DataError(f"cannot read {path}: {type(cause).__name__}: {' '.join(str(cause).split())[:400]}") from None


def _local(path: str) -> Path | None:
    """Where that is on this machine; None: it is the name of a data set on the hub. Raises DataError."""
    where = Path(path).expanduser()
    if where.exists() or glob.has_magic(path):
        return where
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or where.suffix.lower() in _FORMATS
    if looks_local:
        raise DataError(f"dataset.path: there is no {path} on this machine")
    return None


def _load_local(where: Path, section: DatasetSection) -> Mapping[str, Table]:
    import datasets

    kind = _format(where, section)
    if kind == "audiofolder":
        parts = read_folder(where, section.split)
        return {name: Table(datasets.Dataset.from_dict(part.columns), part.fingerprint) for name, part in parts.items()}
    options: dict[str, Any] = {}
    if kind == "text":
        options["keep_linebreaks"] = True
    if kind == "csv" and _names(where)[0].suffix.lower() == ".tsv":
        options["sep"] = "\t"
    if where.is_dir():
        options["data_dir"] = str(where.resolve())
    else:
        options["data_files"] = {section.split: str(where.absolute())}
    return _named(datasets.load_dataset(kind, cache_dir=str(folder() / "tables"), **options))


def _format(where: Path, section: DatasetSection) -> str:
    if section.format != "auto":
        return section.format
    kinds = {_FORMATS[file.suffix.lower()] for file in _names(where) if file.suffix.lower() in _FORMATS}
    for kind in _FOLDERS:
        if kind in kinds:  # Beside pictures and sounds lies their metadata.
            return kind
    if len(kinds) != 1:
        what = f"files of {', '.join(sorted(kinds))}" if kinds else "no file of a known format"
        raise DataError(f"{section.path} holds {what}: say which in dataset.format")
    return kinds.pop()


def _names(where: Path) -> list[Path]:
    """The files of a folder, however deep; those that a glob finds; or the file itself. Raises DataError for none."""
    if where.is_dir():
        found = [Path(place, name) for place, _, names in os.walk(where) for name in names if name[0] != "."]
    elif where.exists():
        found = [where]
    else:
        found = [Path(name) for name in glob.glob(str(where), recursive=True)]
    if not found:
        raise DataError(f"dataset.path: nothing is in {where}, or matches it")
    return found


def _load_hub(section: DatasetSection) -> Mapping[str, Table]:
    import datasets

    return _named(datasets.load_dataset(section.path, section.name or None, revision=section.revision or None))


def _named(found: Mapping[str, Any]) -> Mapping[str, Table]:
    """The splits; where the library keeps one is named after its content."""
    return {name: Table(rows, str(rows._fingerprint)) for name, rows in found.items()}


def expect_hub() -> None:
    """Raises DataError when the hub does not answer: the library would try again and again. Nothing is asked if the
    library is told to work without it (HF_HUB_OFFLINE)."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE):
        return
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = getproxies().get(hub.scheme)
    door = urlsplit(proxy) if proxy else hub
    port = door.port or (80 if door.scheme == "http" else 443)
    try:
        socket.create_connection((door.hostname or "", port), HUB_TIMEOUT).close()
    except OSError as error:
        raise DataError(
            f"the hub at {hub.hostname} cannot be reached: {error}; give dataset.path a file or folder of this "
            "machine, or set HF_HUB_OFFLINE=1 if the data are in the hub's cache here"
        ) from None
