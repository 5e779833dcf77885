"""Recordings: decoded, brought to one rate and length, beside their transcripts in numbers."""

from __future__ import annotations

import io
import struct
import tracemalloc
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distqat.config import RunConfig
from distqat.data.sources import open_source, source_shape
from distqat.data.sources.library.resampling import resample
from distqat.data.sources.library.sounds import to_numbers
from distqat.data_sections import LETTERS
from distqat.errors import DataError
from distqat.model.shapes import DataShape
from tests.data.sources import files

RATES = [(8000, 16000), (44100, 16000), (48000, 16000), (22050, 16000), (16000, 8000)]


def config(path: Path, *settings: str) -> RunConfig:
    limits = ["seconds=1.0", "labels=12", "classes=29", "held_out=0.25"]
    return files.config("speech", path, *(f"dataset.{limit}" for limit in limits), *settings)


def test_recordings_and_their_list(tmp_path: Path) -> None:
    recordings = [
        ("One", files.tone(0.5), 16000),
        ("two!", files.tone(0.5, 8000), 8000),
        ("three  more", np.stack([files.tone(0.25, 44100)] * 2, 1), 44100),
        ("four", files.tone(1.0), 16000),
        ("too long to be said", files.tone(0.5), 16000),
        ("late", files.tone(1.5), 16000),
        ("?", files.tone(0.5), 16000),
    ]
    run = config(files.audio_folder(tmp_path / "said", recordings))
    source = open_source(run)
    assert source.shape == source_shape(run).data == DataShape("audio", (16000,), 29)
    assert (source.task, len(source.train), len(source.held_out)) == ("speech", 3, 1)
    parts = [split.batch(np.arange(len(split))) for split in (source.train, source.held_out)]
    inputs, labels = (np.concatenate([part[name] for part in parts]) for name in ("inputs", "labels"))
    assert (inputs.shape, labels.shape) == ((4, 16000), (4, 12))
    assert [str(array.dtype) for array in (inputs, labels)] == ["float32", "int64"]
    said = {"".join(LETTERS[label - 1] for label in row if label > 0): place for place, row in enumerate(labels)}
    assert set(said) == {"one", "two", "three more", "four"}
    lengths = {words: int(np.flatnonzero(inputs[place])[-1]) + 1 for words, place in said.items()}
    assert all(abs(lengths[words] - expected) <= 2 for words, expected in
               {"one": 8000, "two": 8000, "three more": 4000, "four": 16000}.items())  # fmt: skip
    # -1 stands behind the last character and nowhere else.
    for row in labels:
        assert (row[: (row > 0).sum()] > 0).all()
        assert (row[(row > 0).sum() :] == -1).all()
    for words, place in said.items():
        sound = inputs[place, : lengths[words]]
        assert abs(float(sound.mean())) < 0.01
        assert float(sound.std()) == pytest.approx(1.0, abs=0.02)
    # The same tone, at whatever rate it was kept.
    assert np.allclose(inputs[said["one"]][500:7500], inputs[said["two"]][500:7500], atol=0.02)


def test_transcripts_in_numbers() -> None:
    assert to_numbers("It's  A\tb", LETTERS) == [11, 22, 2, 21, 1, 3, 1, 4]
    assert to_numbers("ab", "AB ") == [1, 2]
    assert to_numbers("aB", "aB") == [1, 2]
    assert to_numbers("", LETTERS) == []
    # What is left out leaves no second space behind, and separates nothing.
    assert to_numbers("a - b -", " ab") == to_numbers("- a\n&\tb", " ab") == [2, 1, 3]
    assert to_numbers("a-b", " ab") == [2, 3]
    assert to_numbers("a - b", "ab") == [1, 2]


def test_a_pretrained_vocabulary_of_its_own(tmp_path: Path) -> None:
    folder = files.audio_folder(tmp_path / "said", [("ab a", files.tone(0.2), 16000)] * 4)
    source = open_source(config(folder, "dataset.vocabulary='#BA '"))
    labels = source.train.batch(np.array([0]))["labels"]
    assert labels[0, :5].tolist() == [3, 2, 4, 3, -1]


def test_recordings_that_do_not_fit_are_an_error_when_none_does(tmp_path: Path) -> None:
    folder = files.audio_folder(tmp_path / "said", [("much too long a transcript", files.tone(0.2), 16000)] * 3)
    with pytest.raises(DataError, match="none of 3 recordings has at most 1 s and a transcript of 1 to 12 characters"):
        open_source(config(folder))


def claiming(rate: int, seconds: float = 0.2) -> bytes:
    """A sound of which the header says another rate."""
    file = io.BytesIO()
    soundfile.write(file, files.tone(seconds), 16000, format="WAV", subtype="PCM_16")
    content = bytearray(file.getvalue())
    content[24:28] = struct.pack("<I", rate)
    return bytes(content)


def test_what_is_no_sound_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = files.audio_folder(tmp_path / "said", [("one", files.tone(0.2), 16000)] * 6)
    (folder / "1.wav").write_bytes(b"no sound")
    (folder / "3.wav").write_bytes(claiming(2**31 - 1))
    caplog.set_level("INFO")
    for _ in range(2):  # Also when what is left is known already.
        caplog.clear()
        source = open_source(config(folder))
        assert len(source.train) + len(source.held_out) == 4
        assert f"2 of 6 recordings of {folder} are left out" in caplog.text
        assert "2 of 6 recordings cannot be read, such as: row 1 is no sound that can be read" in caplog.text


def test_no_sound_at_all_is_an_error(tmp_path: Path) -> None:
    folder = files.audio_folder(tmp_path / "said", [("one", files.tone(0.2), 16000)] * 3)
    for number in range(3):
        (folder / f"{number}.wav").write_bytes(b"no sound")
    with pytest.raises(
        DataError, match="nothing is left: 3 of 3 recordings cannot be read, such as: row 0 is no sound"
    ):
        open_source(config(folder))


@pytest.mark.parametrize("rate", [1, 999, 768_001, 20_000_003, 2**31 - 1])
def test_a_rate_that_no_sound_has_is_refused(rate: int, tmp_path: Path) -> None:
    """Also in a file that has changed since it was looked at: the filter would take all memory."""
    folder = files.audio_folder(tmp_path / "said", [("one", files.tone(0.2), 16000)] * 4)
    source = open_source(config(folder))
    for number in range(4):
        (folder / f"{number}.wav").write_bytes(claiming(rate))
    with pytest.raises(DataError, match=rf"row \d claims {rate} samples a second; 1000 to 768000 are known"):
        source.train.batch(np.array([0]))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e38])
def test_samples_that_are_not_finite_are_refused(odd: float, tmp_path: Path) -> None:
    folder = files.audio_folder(tmp_path / "said", [("one", files.tone(0.2), 16000)] * 4)
    sound = files.tone(0.2)
    sound[1000] = odd
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", sound, 16000, subtype="FLOAT")
    source = open_source(config(folder))
    with pytest.raises(DataError, match=r"row \d is no sound: it has samples that are not finite"):
        source.train.batch(np.array([0]))


def test_between_odd_rates_little_memory_is_enough() -> None:
    """16000 x 3269 weights, of which few are there at once."""
    rate = 767_999
    tracemalloc.start()
    found = resample(files.tone(0.02, rate), rate, 16000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20
    assert np.abs(found[80:240] - files.tone(0.02)[80:240]).max() < 2e-3


@pytest.mark.parametrize(("rate", "wanted"), RATES)
def test_a_tone_at_another_rate_is_the_tone_at_that_rate(rate: int, wanted: int) -> None:
    """Against the exact samples of the sine; away from the ends, which are cut off."""
    for pitch in (0.0, 100.0, 1234.5, 0.42 * min(rate, wanted)):
        times = np.arange(rate // 4) / rate
        found = resample(np.cos(2 * np.pi * pitch * times).astype(np.float32), rate, wanted)
        assert len(found) == ceil(len(times) * wanted / rate)
        expected = np.cos(2 * np.pi * pitch * np.arange(len(found)) / wanted)
        inner = slice(len(found) // 8, -len(found) // 8)
        assert np.abs(found[inner] - expected[inner]).max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_silent() -> None:
    """Without a filter a tone of 6000 Hz at 8000 Hz would come back as one of 2000 Hz."""
    found = resample(files.tone(0.5, 16000, 6000.0), 16000, 8000)
    inner = found[len(found) // 8 : -len(found) // 8]
    assert np.abs(inner).max() < 0.5 * 10 ** (-70 / 20)


def test_resampling_of_nothing_and_of_little() -> None:
    assert len(resample(np.empty(0, np.float32), 8000, 16000)) == 0
    assert len(resample(np.ones(1, np.float32), 44100, 16000)) == 1
    sound = files.tone(0.1)
    assert np.array_equal(resample(sound, 16000, 16000), sound)
