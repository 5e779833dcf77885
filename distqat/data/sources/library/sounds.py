"""Recordings and their transcripts, for CTC."""

from __future__ import annotations

import io
import json
import logging
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from distqat.data.sources.library import cache, columns
from distqat.data.sources.library.resampling import resample
from distqat.data.sources.library.tables import Table, open_tables, split_rows
from distqat.data.sources.splits import Array, Arrays, Indices, Split, expect_indices
from distqat.data_sections import DatasetSection
from distqat.errors import DataError

log = logging.getLogger(__name__)

PADDING = -1
"""Behind the last character of a transcript."""

RATES = (1000, 768_000)
"""Least and most samples a second that a recording may claim to have."""

LOUDEST = 2.0**31
"""A sample beyond is no sound, in whatever unit."""

_ROWS = 64
_QUIET = 1e-7


def samples(section: DatasetSection) -> int:
    """Of the longest recording."""
    return round(section.seconds * section.sample_rate)


def load(section: DatasetSection) -> tuple[Split, Split]:
    """What is trained on, and what is held out. Raises DataError."""
    tables = open_tables(section)
    train = _split(tables.train, section)
    if tables.held_out is not None:
        return train, _split(tables.held_out, section)
    chosen, rest = split_rows(len(train), section.held_out)
    return train.part(chosen), train.part(rest)


def to_numbers(text: str, characters: str) -> list[int]:
    """A transcript in numbers from 1 on. Letters become small or capital, as there; others are left out, and what
    stands between words then is one space."""
    if characters == characters.lower():
        text = text.lower()
    elif characters == characters.upper():
        text = text.upper()
    places = {character: place for place, character in enumerate(characters, 1)}
    kept = "".join(character for character in text if character in places or character.isspace())
    return [places[character] for character in " ".join(kept.split()) if character in places]


class SoundSplit:
    """Some rows of a table: "inputs" float32 [n, S], zeros behind a recording, and "labels" int64 [n, L], -1 behind."""

    def __init__(self, table: Any, columns: tuple[str, str], rows: Indices, section: DatasetSection) -> None:
        self._table = table
        self._columns = columns  # Of sound and of transcripts.
        self._rows = rows
        self._section = section

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, rows: Indices) -> SoundSplit:
        """Some of its samples."""
        return SoundSplit(self._table, self._columns, self._rows[rows], self._section)

    def batch(self, indices: Indices) -> Arrays:
        expect_indices(indices, len(self))
        rows, section = self._rows[indices], self._section
        inputs = np.zeros((len(rows), samples(section)), np.float32)
        labels = np.full((len(rows), section.labels), PADDING, np.int64)
        sound, text = self._columns
        found = self._table[rows.tolist()] if len(rows) else {sound: [], text: []}
        for place, (row, file, words) in enumerate(zip(rows, found[sound], found[text], strict=True)):
            own = _normalised(_read(int(row), file, section.sample_rate))[: inputs.shape[1]]
            inputs[place, : len(own)] = own
            numbers = to_numbers(words, section.characters)
            labels[place, : len(numbers)] = numbers
        return {"inputs": inputs, "labels": labels}


def _split(table: Table, section: DatasetSection) -> SoundSplit:
    """The rows of a part that are short enough, and can be read."""
    import datasets

    sound = columns.find(table.rows, "input", section.input, columns.SOUNDS)
    text = columns.find(table.rows, "target", section.target, columns.TRANSCRIPTS)
    try:
        rows = table.rows.select_columns([sound, text]).cast_column(sound, datasets.Audio(decode=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"column '{sound}' of {section.path} holds no sound: {error}") from None
    limits = [section.seconds, section.labels, section.characters]
    key = {"data": table.fingerprint, "columns": [sound, text], "limits": limits, "version": 2}
    path = cache.once("recordings", key, partial(_write_kept, rows, (sound, text), section))
    found = json.loads(path.read_text())
    kept = np.array(found["kept"], np.int64)
    if len(kept) < len(rows):
        log.info("%d of %d recordings of %s are left out", len(rows) - len(kept), len(rows), section.path)
    faults = f"{found['unreadable']} of {len(rows)} recordings cannot be read, such as: {found['fault']}"
    if found["unreadable"]:
        log.warning("%s: %s", section.path, faults)
    if not len(kept) and found["unreadable"]:
        raise DataError(f"{section.path}: nothing is left: {faults}")
    if not len(kept):
        raise DataError(
            f"{section.path}: none of {len(rows)} recordings has at most {section.seconds:g} s and a transcript of "
            f"1 to {section.labels} characters of the vocabulary"
        )
    return SoundSplit(rows, (sound, text), kept, section)


def _write_kept(rows: Any, names: tuple[str, str], section: DatasetSection, file: BinaryIO) -> None:
    """Numbers of the rows that are short enough, and have something to say; how many cannot be read, and why the first
    of them cannot."""
    kept, faults, row = list[int](), list[str](), 0
    sound, text = names
    for some in rows.iter(batch_size=_ROWS):
        for content, words in zip(some[sound], some[text], strict=True):
            if not isinstance(words, str):
                raise DataError(f"row {row}: column '{text}' holds {words!r}, which is no transcript")
            if 0 < len(to_numbers(words, section.characters)) <= section.labels:
                try:
                    kept += [row] if 0 < _seconds(row, content) <= section.seconds else []
                except DataError as error:
                    faults.append(str(error))
            row += 1
    file.write(json.dumps({"kept": kept, "unreadable": len(faults), "fault": "".join(faults[:1])}).encode())


def _source(row: int, file: dict[str, Any] | None) -> Any:
    if file is None:
        raise DataError(f"row {row} has no sound")
    return io.BytesIO(file["bytes"]) if file["bytes"] is not None else file["path"]


def _seconds(row: int, file: dict[str, Any] | None) -> float:
    import soundfile

    try:
        found = soundfile.info(_source(row, file))
    except (RuntimeError, OSError, TypeError) as error:
        raise DataError(f"row {row} is no sound that can be read: {error}") from None
    _expect_rate(row, found.samplerate)
    return float(found.duration)


def _read(row: int, file: dict[str, Any] | None, rate: int) -> Array:
    """One channel at that rate. Raises DataError."""
    import soundfile

    try:
        sound, own = soundfile.read(_source(row, file), dtype="float32", always_2d=True)
    except (RuntimeError, OSError, TypeError) as error:
        raise DataError(f"row {row} is no sound that can be read: {error}") from None
    _expect_rate(row, own)
    if not np.abs(sound).max(initial=0.0) <= LOUDEST:  # Nor is it of what is not a number.
        raise DataError(f"row {row} is no sound: it has samples that are not finite, or beyond {LOUDEST:g}")
    return resample(sound.mean(1), own, rate)


def _expect_rate(row: int, rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"row {row} claims {rate} samples a second; {RATES[0]} to {RATES[1]} are known")


def _normalised(sound: Array) -> Array:
    """With mean 0 and variance 1, as wav2vec 2.0 is trained."""
    return ((sound - sound.mean()) / np.sqrt(sound.var() + _QUIET)).astype(np.float32) if len(sound) else sound
