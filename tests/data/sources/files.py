"""Data sets as users have them, written by the tests: pictures in folders, tables, texts, sounds."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from distqat.config import RunConfig, load
from distqat.data.sources.splits import Array

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))
NAMES = ("red", "green", "blue", "yellow")


def config(task: str, path: Path | str, *settings: str) -> RunConfig:
    """A run over those data."""
    base = [f"dataset.{name}" for name in (f"task={task}", f"path={path}")]
    return load(overrides=["data.source=datasets", *base, *settings]).run_config()


def picture(label: int, number: int, side: int = 32) -> Image.Image:
    """Of a class, with noise of its own."""
    noise = np.random.Generator(np.random.PCG64(number)).integers(-40, 40, (side, side, 3))
    return Image.fromarray(np.clip(noise + COLOURS[label], 0, 255).astype(np.uint8))


def image_folder(where: Path, each: int = 6, splits: Sequence[str] = (), side: int = 32) -> Path:
    """`where/red/0.png`, or `where/train/red/0.png`, ..., as CIFAR-10 is kept."""
    for split in splits or ("",):
        for label, name in enumerate(NAMES):
            folder = where / split / name
            folder.mkdir(parents=True)
            for number in range(each):
                picture(label, number, side).save(folder / f"{number}.png")
    return where


def encoded(image: Image.Image) -> bytes:
    """As a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tone(seconds: float, rate: int = 16000, pitch: float = 440.0) -> Array:
    """A sine."""
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def audio_folder(where: Path, recordings: Sequence[tuple[str, Array, int]]) -> Path:
    """Recordings of (transcript, sound, rate), beside their list."""
    where.mkdir(parents=True, exist_ok=True)
    rows = ["file_name,transcription"]
    for number, (words, sound, rate) in enumerate(recordings):
        soundfile.write(where / f"{number}.wav", sound, rate)
        rows.append(f"{number}.wav,{json.dumps(words)}")
    (where / "metadata.csv").write_text("\n".join(rows) + "\n")
    return where


def table(where: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A table in the format of the file's name."""
    import datasets

    columns = datasets.Dataset.from_list(list(rows))
    write = {".parquet": columns.to_parquet, ".csv": columns.to_csv, ".json": columns.to_json}[where.suffix]
    write(str(where))
    return where
