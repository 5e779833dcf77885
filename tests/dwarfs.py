"""The configs of the families, made tiny: the same file, a small shape, and data of the same columns on the spot."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distqat.config import Settings, load
from distqat.data_sections import DatasetSection

CONFIGS = Path(__file__).parent.parent / "configs"

RATE = 2000
"""Of sound, in Hz."""

ROWS = 64
"""Of the data."""

WINDOWS = 5
"""Of a text, about."""

_GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16}
_GPT_NEO = {"num_layers": 7, "num_heads": 2, "hidden_size": 16, "max_position_embeddings": 16, "window_size": 4}
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
SPEECH: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_length": 2,
    "mask_feature_length": 2,
}
"""A wav2vec 2.0 of a few thousand parameters."""

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "resnet18": {"width": 4},
    "resnet18_split": {"width": 4},
    "resnet50": {"width": 4},
    "resnet101": {"width": 4},
    "distilgpt2": _GPT2,
    "distilgpt2_split": _GPT2,
    "gptneo_small": _GPT_NEO,
    "gptneo": _GPT_NEO,
    "gptneo_split": _GPT_NEO,
    "llama_small": _LLAMA,
    "wav2vec2": SPEECH,
    "wav2vec2_split": SPEECH,
}
"""Each config, and how its model is made tiny."""


def settings(name: str, folder: Path, **changes: str) -> Settings:
    """The config of that name, tiny; its data are put into that folder."""
    return load(CONFIGS / f"{name}.yaml", overrides(name, folder, **changes))


def overrides(name: str, folder: Path, **changes: str) -> list[str]:
    """What makes the config of that name tiny, as `--set` takes it."""
    dataset = load(CONFIGS / f"{name}.yaml").dataset
    data, rows = _kinds(dataset)
    path = write(folder / f"{dataset.task}.parquet", rows)
    data |= {"path": str(path), "name": "", "split": "train", "held_out_split": "", "held_out": "0.25"}
    smaller = {f"dataset.{key}": value for key, value in data.items()}
    smaller |= {f"model.options.{key}": str(value) for key, value in FAMILIES[name].items()}
    smaller |= {"data.batch": "8", "data.microbatches": "2", "data.sequence": "12"}
    return [f"{key}={value}" for key, value in {**smaller, **changes}.items()]


def num_samples(name: str) -> float:
    """That are trained on in a pass over the data of that config, about."""
    return 0.75 * ROWS * (WINDOWS if load(CONFIGS / f"{name}.yaml").dataset.task == "llm" else 1)


Draw = np.random.Generator

Columns = Mapping[str, Callable[[Draw], Any]]
"""What draws a value of each column."""


def _kinds(dataset: DatasetSection) -> tuple[dict[str, str], Columns]:
    """How samples are made small, and the columns of which they are made."""
    match dataset.task:
        case "cv":
            # Small images keep their small stem, and large ones the large one.
            side = 8 if dataset.image <= 64 else 72
            small = {"image": str(side), "classes": "3"}
            return small, {dataset.input: partial(_picture, side), dataset.target: lambda draw: int(draw.integers(3))}
        case "llm":
            return {"tokenizer": "bytes", "classes": "256"}, {dataset.input: _text}
        case _:
            small = {"sample_rate": str(RATE), "seconds": "0.4", "labels": "6"}
            return small, {dataset.input: _recording, dataset.target: lambda draw: ("NO", "YES")[draw.integers(2)]}


def write(path: Path, rows: Columns) -> Path:
    """A parquet file of ROWS rows, each column drawn by its function."""
    import datasets

    datasets.disable_progress_bars()
    numbers = np.random.default_rng(7)
    columns = {column: [draw(numbers) for _ in range(ROWS)] for column, draw in rows.items()}
    datasets.Dataset.from_dict(columns).to_parquet(path)
    return path


def _text(numbers: Draw) -> str:
    return " ".join(("three", "small", "words", "or", "more")[int(pick)] for pick in numbers.integers(5, size=12))


def _picture(side: int, numbers: Draw) -> dict[str, Any]:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(numbers.integers(256, size=(side, side, 3)).astype(np.uint8)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def _recording(numbers: Draw) -> dict[str, Any]:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, numbers.normal(size=int(numbers.integers(RATE // 4, RATE // 3))) / 4, RATE, format="wav")
    return {"bytes": file.getvalue(), "path": None}
