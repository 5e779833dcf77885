"""Texts of tables and files: tokenised once on a machine, packed into one file, and read as windows."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distqat.config import RunConfig
from distqat.data.sources import Source, open_source, source_shape
from distqat.data.sources.library.packing import Packer, pack, read
from distqat.errors import DataError
from distqat.model.shapes import DataShape
from tests.data.sources import files

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]


def config(path: Path, *settings: str) -> RunConfig:
    return files.config("llm", path, "data.sequence=8", *settings)


def tokens(source: Source) -> bytes:
    """All inputs of both parts, and the last label."""
    parts = [split.batch(np.arange(len(split))) for split in (source.train, source.held_out)]
    return bytes(np.concatenate([part["inputs"].ravel() for part in parts]).astype(np.uint8))


def tokenizer(where: Path) -> Path:
    """A directory as `save_pretrained` leaves it: one token for each word, and the end of a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"<unk>": 0, "<|endoftext|>": 1, **{w: i for i, w in enumerate(WORDS, 2)}}, "<unk>"))
    made.pre_tokenizer = Whitespace()
    where.mkdir()
    made.save(str(where / "tokenizer.json"))
    return where


def test_lines_of_a_text_file_keep_their_breaks(tmp_path: Path) -> None:
    text = "".join(f"line {number} of the text\n" for number in range(40))
    path = tmp_path / "text.txt"
    path.write_text(text)
    source = open_source(config(path, "dataset.classes=256", "dataset.held_out=0.2"))
    assert source.shape == source_shape(config(path, "dataset.classes=256")).data == DataShape("tokens", (8,), 256)
    assert tokens(source) == text.encode()[: len(tokens(source))]
    windows = (len(text) - 1) // 8
    assert (len(source.train), len(source.held_out)) == (windows - round(windows * 0.2), round(windows * 0.2))
    batch = source.held_out.batch(np.array([0]))
    assert np.array_equal(batch["inputs"][0, 1:], batch["labels"][0, :-1])


@pytest.mark.parametrize("kind", ["parquet", "json", "csv"])
def test_rows_of_a_table_are_parted(kind: str, tmp_path: Path) -> None:
    path = files.table(tmp_path / f"few.{kind}", [{"text": "first row"}, {"text": "second\n"}, {"text": "third"}] * 4)
    source = open_source(config(path, "dataset.classes=256", "dataset.held_out=0.5"))
    assert tokens(source).startswith(b"first row\n\nsecond\nthird\n\nfirst row")


def test_a_glob_of_files_and_a_split_of_their_own(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        files.table(tmp_path / f"{name}.parquet", [{"content": f"{name} " * 5}] * 5)
    source = open_source(config(tmp_path, "dataset.classes=256", "dataset.held_out_split=test"))
    held_out = source.held_out.batch(np.arange(len(source.held_out)))["inputs"].astype(np.uint8).tobytes()
    assert b"test-0" in held_out
    assert b"train-" not in held_out
    both = open_source(config(tmp_path / "train-*.parquet", "dataset.classes=256"))
    assert b"train-1" in tokens(both)
    assert b"test-0" not in tokens(both)


def test_a_tokenizer_of_a_directory(tmp_path: Path) -> None:
    path = files.table(tmp_path / "few.json", [{"text": "alpha beta gamma"}, {"text": "zeta delta"}] * 10)
    settings = [f"dataset.tokenizer={tokenizer(tmp_path / 'words')}", "dataset.classes=8"]
    source = open_source(config(path, *settings))
    assert list(tokens(source)[:9]) == [2, 3, 4, 1, 7, 5, 1, 2, 3]
    with pytest.raises(DataError, match=r"has 8 tokens, dataset\.classes says 7"):
        open_source(config(path, settings[0], "dataset.classes=7"))


def test_samples_say_how_many_bytes_their_tokens_are(tmp_path: Path) -> None:
    # 16 bytes and 4 tokens a row, of which the last ends the text: 4 bytes a token, 32 a sample of 8.
    path = files.table(tmp_path / "few.json", [{"text": "alpha beta gamma"}] * 20)
    settings = [f"dataset.tokenizer={tokenizer(tmp_path / 'words')}", "dataset.classes=8"]
    source = open_source(config(path, *settings))
    for split in (source.train, source.held_out):
        assert split.batch(np.array([0, 0]))["bytes"].tolist() == [32.0, 32.0]
    assert "bytes" not in open_source(config(path, "dataset.classes=256")).train.batch(np.array([0]))


def test_the_tokens_are_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    path = files.table(tmp_path / "few.json", [{"text": "alpha beta gamma"}] * 20)
    settings = ["dataset.classes=256"]
    first = tokens(open_source(config(path, *settings)))

    def never(*_: object) -> None:
        raise AssertionError("packed again")

    with monkeypatch.context() as patch:
        patch.setattr("distqat.data.sources.library.texts.pack", never)
        assert tokens(open_source(config(path, *settings))) == first
        with pytest.raises(AssertionError, match="packed again"):
            open_source(config(path, f"dataset.tokenizer={tokenizer(tmp_path / 'w')}", "dataset.classes=9"))
    # Other content under the same name is another data set.
    files.table(path, [{"text": "zeta zeta"}] * 20)
    assert tokens(open_source(config(path, *settings))).startswith(b"zeta zeta")


def test_memory_holds_some_rows_and_not_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 48 MiB that is read row by row is packed within a few."""
    row = "x" * (1 << 20)

    def texts() -> Iterator[list[str]]:
        for _ in range(48):
            yield [row]

    path = tmp_path / "tokens"
    tracemalloc.start()
    try:
        with path.open("wb") as file:
            pack(texts(), Packer.open("bytes", 256), file)
        windows, bytes_per_token = read(path, np.dtype(np.uint8))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(windows) == 48 * ((1 << 20) + 2)
    assert bytes_per_token == (1 << 20) / ((1 << 20) + 2)
    assert peak < 8 << 20


def test_other_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("".join(json.dumps({"text": number}) + "\n" for number in range(3)))
    with pytest.raises(DataError, match="column 'text' holds int, not text"):
        open_source(config(path, "dataset.classes=256"))
    short = tmp_path / "short.txt"
    short.write_text("few")
    with pytest.raises(DataError, match=r"lower data\.sequence"):
        open_source(config(short, "dataset.classes=256"))
    broken = tmp_path / "words"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        open_source(config(short, f"dataset.tokenizer={broken}", "dataset.classes=256"))
