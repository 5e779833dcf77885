"""Where data are looked for: on this machine by format, or on the hub, which may be away."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from distqat.data.sources import open_source, source_shape
from distqat.data.sources.library import recordings, tables
from distqat.data.sources.library.tables import split_rows
from distqat.errors import DataError
from tests.data.sources import files

CLASSES = "dataset.classes=256"


@pytest.mark.parametrize("path", ["./nothing", "/no/where", "~/nothing", "few.parquet", "a/b/c"])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(path: str) -> None:
    with pytest.raises(DataError, match="on this machine"):
        open_source(files.config("llm", path, CLASSES))


def test_formats_that_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is in"):
        open_source(files.config("llm", tmp_path, CLASSES))
    (tmp_path / "a.what").write_text("text\n" * 100)
    with pytest.raises(DataError, match=r"no file of a known format: say which in dataset\.format"):
        open_source(files.config("llm", tmp_path, CLASSES))
    source = open_source(files.config("llm", tmp_path / "a.what", CLASSES, "dataset.format=text", "data.sequence=4"))
    assert len(source.train) > 0
    (tmp_path / "a.txt").write_text("text\n")
    (tmp_path / "b.json").write_text("{}\n")
    with pytest.raises(DataError, match="files of json, text: say which"):
        open_source(files.config("llm", tmp_path, CLASSES))


def test_a_file_that_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "few.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"cannot read .*few\.parquet"):
        open_source(files.config("llm", tmp_path / "few.parquet", CLASSES))


def test_an_arrow_file(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["one row"] * 50}).save_to_disk(str(tmp_path / "kept"))
    (arrow,) = (tmp_path / "kept").glob("*.arrow")
    source = open_source(files.config("llm", arrow, CLASSES, "data.sequence=8"))
    assert bytes(source.train.batch(np.array([0]))["inputs"][0].astype(np.uint8)) == b"one row\n"


def test_a_hub_that_refuses_is_one_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(DataError, match=r"the hub at 127\.0\.0\.1 cannot be reached: .*HF_HUB_OFFLINE=1"):
            open_source(files.config("llm", "owner/name", CLASSES))
        run = files.config("llm", "few.txt", "dataset.tokenizer=owner/words", CLASSES)
        # The shape needs neither data nor tokenizer.
        assert source_shape(run).data.classes == 256


def test_a_hub_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue of connections answers nothing, as a firewall that drops them."""
    monkeypatch.setattr(tables, "HUB_TIMEOUT", 0.3)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        try:
            with pytest.raises(DataError, match="cannot be reached: timed out"):
                tables.expect_hub()
        finally:
            for one in waiting:
                one.close()


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        accepting = threading.Thread(target=lambda: server.accept()[0].close())
        accepting.start()
        tables.expect_hub()
        accepting.join(10)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tables.expect_hub()


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "few.txt"
    path.write_text("text\n")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'distqat\[data\]'"):
        open_source(files.config("llm", path, CLASSES))


def test_rows_that_are_held_out() -> None:
    train, held_out = split_rows(100, 0.2)
    assert (len(train), len(held_out)) == (80, 20)
    assert sorted([*train, *held_out]) == list(range(100))
    assert held_out.tolist() != list(range(80, 100))
    assert [part.tolist() for part in split_rows(100, 0.2)] == [train.tolist(), held_out.tolist()]
    assert [len(part) for part in split_rows(2, 0.01)] == [1, 1]
    assert [len(part) for part in split_rows(10, 0.99)] == [1, 9]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("", "has no metadata.csv or metadata.jsonl"),
        ("name,transcription\n0.wav,one\n", "no rows with the column file_name"),
        ("file_name,transcription\n", "no rows with the column file_name"),
        ("file_name,transcription\n1.wav,one\n", "names 1.wav, which is not there"),
        ("file_name,transcription\n../secret.wav,one\n", "names ../secret.wav, which is not there"),
    ],
)
def test_lists_of_recordings_that_cannot_be_used(listed: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(b"")
    folder = tmp_path / "said"
    folder.mkdir()
    if listed:
        (folder / "metadata.csv").write_text(listed)
    with pytest.raises(DataError, match=message):
        recordings.read_folder(folder, "train")


def test_lists_of_each_split_and_as_lines_of_json(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = files.audio_folder(tmp_path / split, [(split, files.tone(0.1), 16000)])
        (folder / "metadata.csv").unlink()
        line = f'{{"file_name": "0.wav", "transcription": "{split}"}}\n'
        (folder / "metadata.jsonl").write_text(line)
    found = recordings.read_folder(tmp_path, "train")
    assert sorted(found) == ["test", "train"]
    assert found["test"].columns == {"audio": [str(tmp_path / "test" / "0.wav")], "transcription": ["test"]}
    before = found["test"].fingerprint
    files.audio_folder(tmp_path / "test", [("test", files.tone(0.2), 16000)])
    (tmp_path / "test" / "metadata.csv").unlink()
    assert recordings.read_folder(tmp_path, "train")["test"].fingerprint != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], r"dataset\.path must say which data"),
        (["path=x"], r"dataset\.task must be cv, llm or speech"),
        (["path=x", "task=cv"], r"dataset\.classes must be at least 2, got 0"),
        (["path=x", "task=llm", "classes=100"], "at least 256 for bytes, got 100"),
        (["path=x", "task=speech", "classes=29"], r"dataset\.seconds must say"),
        (["path=x", "task=speech", "classes=29", "seconds=1"], r"dataset\.labels must say"),
        (["path=x", "task=speech", "classes=28", "seconds=1", "labels=9"], "at least 29: the characters, and 0"),
        (["mean=[0.5]"], "mean has 1 values for 3 channels"),
        (["std=[0.5, 0.5, 0]"], "std"),
        (["augment=[flip, flip]"], "the same thing twice"),
        (["augment=[turn]"], "augment"),
        (["vocabulary=abca"], "a character twice"),
        (["classes=-1"], "classes"),
    ],
)
def test_settings_that_do_not_fit(settings: list[str], message: str) -> None:
    from distqat.config import load
    from distqat.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        load(overrides=["data.source=datasets", *(f"dataset.{setting}" for setting in settings)])
