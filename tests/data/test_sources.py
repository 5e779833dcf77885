from __future__ import annotations

import gzip
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distqat.config import RunConfig
from distqat.data import sources
from distqat.data.sources import Source, WindowSplit, digits, evaluation_batches, pydocs
from distqat.errors import DataError
from distqat.model.shapes import DataShape
from distqat.sections import DataSection


def config(**data: Any) -> RunConfig:
    return RunConfig(data=DataSection(**data))


def letters(text: bytes) -> sources.splits.Array:
    return np.frombuffer(text, np.uint8)


@pytest.fixture(scope="module")
def images() -> Source:
    return sources.open_source(config(source="digits"))


@pytest.fixture(scope="module")
def documents() -> list[bytes]:
    began = time.process_time()
    found = pydocs.documents()
    assert time.process_time() - began < 4.0  # Less than 2 s on a quiet machine.
    return found


@pytest.fixture
def text(documents: list[bytes], monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(pydocs, "documents", lambda: documents)
    return sources.open_source(config(source="pydocs", sequence=48))


def whole(split: sources.Split) -> sources.Arrays:
    return split.batch(np.arange(len(split)))


def test_digits_are_images_and_labels(images: Source) -> None:
    assert (images.name, images.task, images.shape) == ("digits", "cv", DataShape("image", (1, 8, 8), 10))
    assert (len(images.train), len(images.held_out)) == (1438, 359)
    batch = images.train.batch(np.array([5, 3, 5]))
    assert (str(batch["inputs"].dtype), batch["inputs"].shape) == ("float32", (3, 1, 8, 8))
    assert (str(batch["labels"].dtype), batch["labels"].shape) == ("int64", (3,))
    assert np.array_equal(batch["inputs"][0], batch["inputs"][2])
    values = whole(images.train)["inputs"]
    assert (values.min(), values.max()) == (-1.0, 1.0)


def test_digits_are_scikit_learns(images: Source) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    is_held_out = np.zeros(len(theirs.target), bool)
    is_held_out[digits.held_out(theirs.target)] = True
    ours = whole(images.held_out)
    assert np.array_equal((ours["inputs"].reshape(-1, 64) + 1) * 8, theirs.data[is_held_out])
    assert np.array_equal(ours["labels"], theirs.target[is_held_out])
    assert np.array_equal(whole(images.train)["labels"], theirs.target[~is_held_out])


def test_every_class_is_held_out_alike(images: Source) -> None:
    held_out = np.bincount(whole(images.held_out)["labels"])
    everything = held_out + np.bincount(whole(images.train)["labels"])
    assert np.abs(held_out / everything - digits.HELD_OUT).max() < 0.005


def test_the_held_out_digits_never_change(images: Source) -> None:
    assert whole(images.held_out)["labels"][:20].tolist() == [
        3,
        5,
        6,
        8,
        0,
        5,
        0,
        7,
        0,
        2,
        3,
        1,
        1,
        3,
        7,
        3,
        9,
        3,
        1,
        5,
    ]


def test_what_is_drawn_is_a_copy(images: Source) -> None:
    images.train.batch(np.array([0]))["inputs"][:] = 7
    assert images.train.batch(np.array([0]))["inputs"].max() <= 1


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'distqat\[data\]'"):
        sources.open_source(config(source="digits"))


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"a,b\n"), gzip.compress(b"1,2\n3,4\n")],
    ids=["empty", "no gzip", "no numbers", "too narrow"],
)
def test_a_broken_file_is_named(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "digits.csv.gz"
    file.write_bytes(content)
    monkeypatch.setattr(digits, "_file", lambda: file)
    with pytest.raises(DataError, match="digits"):
        sources.open_source(config(source="digits"))


def test_pydocs_are_windows_of_bytes(text: Source) -> None:
    assert (text.name, text.task, text.shape) == ("pydocs", "llm", DataShape("tokens", (48,), 256))
    assert len(text.train) > 15_000
    assert 0.08 < len(text.held_out) / (len(text.train) + len(text.held_out)) < 0.15
    batch = text.train.batch(np.array([0, 7]))
    assert batch["inputs"].dtype == batch["labels"].dtype == np.int64
    assert batch["inputs"].shape == batch["labels"].shape == (2, 48)
    assert np.array_equal(batch["inputs"][:, 1:], batch["labels"][:, :-1])


def test_pydocs_read_like_documentation(text: Source) -> None:
    read = bytes(whole(text.train)["inputs"].astype(np.uint8).ravel())
    for words in (b"Python", b" the ", b"exception", b"keyword argument"):
        assert words in read


def test_pydocs_hold_out_whole_documents(documents: list[bytes]) -> None:
    assert len(documents) == len(set(documents)) > 120
    train, held_out = pydocs.split(documents)
    assert train + held_out == documents
    assert train
    assert held_out


def test_pydocs_are_the_same_every_time(documents: list[bytes]) -> None:
    assert pydocs.documents() == documents


def test_a_library_without_sources_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="sources of the standard library"):
        sources.open_source(config(source="pydocs"))


def test_a_module_that_does_not_parse_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text('"""Good."""\nclass A:\n    """Of a class."""\n    def f(self): "Of a method."\n')
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "foreign.py").write_text('"""Foreign."""')
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert list(pydocs._docstrings()) == [b"Good.\n\nOf a class.\n\nOf a method."]


def test_windows_by_hand() -> None:
    split = WindowSplit(letters(b"abcdefgh"), 3)
    assert len(split) == 2
    batch = split.batch(np.array([1, 0]))
    assert [bytes(row.astype(np.uint8)) for row in batch["inputs"]] == [b"def", b"abc"]
    assert [bytes(row.astype(np.uint8)) for row in batch["labels"]] == [b"efg", b"bcd"]
    assert len(WindowSplit(letters(b"abc"), 3)) == len(WindowSplit(letters(b""), 3)) == 0
    assert split.batch(np.array([], np.int64))["inputs"].shape == (0, 3)
    with pytest.raises(IndexError):
        split.batch(np.array([2]))


def test_evaluation_sees_every_sample_once(images: Source) -> None:
    batches = list(evaluation_batches(images.held_out, 100))
    assert [len(batch["labels"]) for batch in batches] == [100, 100, 100, 59]
    labels = np.concatenate([batch["labels"] for batch in batches])
    assert np.array_equal(labels, whole(images.held_out)["labels"])


def test_bad_sections_are_named(text: Source) -> None:
    with pytest.raises(DataError, match="unknown data source 'digit'; there are: datasets, digits, pydocs"):
        sources.open_source(config(source="digit"))
    with pytest.raises(DataError, match=r"lower data\.sequence"):
        sources.open_source(config(source="pydocs", sequence=10_000_000))


def test_the_shape_is_known_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, images: Source, text: Source
) -> None:
    """Experts and mirrors need no data."""

    def never(*_: object) -> None:
        raise AssertionError("data were read")

    for module in (digits, pydocs):
        monkeypatch.setattr(module, "load", never)
    monkeypatch.setattr(Path, "open", never)
    assert sources.source_shape(config(source="digits")) == (images.task, images.shape)
    assert sources.source_shape(config(source="pydocs", sequence=48)) == (text.task, text.shape)
    with pytest.raises(DataError, match="unknown data source 'digit'"):
        sources.source_shape(config(source="digit"))


def test_what_is_not_augmented_is_the_same_at_every_position(images: Source) -> None:
    indices = np.array([4, 2])
    one, other = (sources.training_batch(images.train, indices, begin) for begin in (0, 77))
    assert np.array_equal(one["inputs"], other["inputs"])
