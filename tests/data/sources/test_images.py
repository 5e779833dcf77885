"""Images of folders and tables: shapes, labels, what is held out, and crops and flips that depend on the position."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distqat.data.sources import Source, open_source, source_shape, training_batch
from distqat.data.sources.library.draws import Draws
from distqat.data.sources.library.images import PIXELS, Look
from distqat.data_sections import DatasetSection
from distqat.errors import DataError
from distqat.model.shapes import DataShape
from tests.data.sources import files

CLASSES = "dataset.classes=4"


def everything(source: Source) -> tuple[list[bytes], list[bytes]]:
    """All images of both parts."""
    train, held_out = (split.batch(np.arange(len(split)))["inputs"] for split in (source.train, source.held_out))
    return [image.tobytes() for image in train], [image.tobytes() for image in held_out]


def test_a_folder_of_folders(tmp_path: Path) -> None:
    config = files.config("cv", files.image_folder(tmp_path / "few"), CLASSES, "dataset.held_out=0.25")
    source = open_source(config)
    assert source.shape == source_shape(config).data == DataShape("image", (3, 32, 32), 4)
    assert (source.task, len(source.train), len(source.held_out)) == ("cv", 18, 6)
    batch = source.train.batch(np.array([3, 0, 3]))
    assert (batch["inputs"].shape, str(batch["inputs"].dtype)) == ((3, 3, 32, 32), "float32")
    assert (batch["labels"].shape, str(batch["labels"].dtype)) == ((3,), "int64")
    assert np.array_equal(batch["inputs"][0], batch["inputs"][2])
    # Every image is in one part once, with its label: blue, green, red, yellow, as the folders are sorted.
    train, held_out = everything(source)
    assert len({*train, *held_out}) == 24
    whole = source.train.batch(np.arange(18))
    blue, green, red, yellow = (whole["inputs"][whole["labels"] == label].mean((0, 2, 3)) for label in range(4))
    assert [int(colour.argmax()) for colour in (blue, green, red)] == [2, 1, 0]
    assert yellow[2] < min(yellow[:2])


def test_pixels_by_hand(tmp_path: Path) -> None:
    folder = files.image_folder(tmp_path / "few", 2)
    config = files.config("cv", folder, CLASSES, "dataset.mean=[0.5, 0.4, 0.3]", "dataset.std=[0.2, 0.3, 0.4]")
    source = open_source(config)
    pixels = np.asarray(files.picture(0, 1), np.float32).transpose(2, 0, 1) / 255
    expected = (pixels - np.array([0.5, 0.4, 0.3])[:, None, None]) / np.array([0.2, 0.3, 0.4])[:, None, None]
    images = [np.frombuffer(image, np.float32) for part in everything(source) for image in part]
    assert any(np.allclose(image, expected.ravel(), atol=1e-5) for image in images)


def test_what_is_held_out_is_the_same_in_every_run(tmp_path: Path) -> None:
    folder = files.image_folder(tmp_path / "few")
    one, other = (everything(open_source(files.config("cv", folder, CLASSES, f"run.seed={seed}"))) for seed in (1, 2))
    assert one == other


def test_splits_of_their_own(tmp_path: Path) -> None:
    folder = files.image_folder(tmp_path / "both", 3, ["train", "test"])
    source = open_source(files.config("cv", folder, CLASSES, "dataset.held_out_split=test"))
    assert (len(source.train), len(source.held_out)) == (12, 12)
    with pytest.raises(DataError, match="no split 'valid'; there are: train, test"):
        open_source(files.config("cv", folder, CLASSES, "dataset.held_out_split=valid"))


def test_a_table_of_encoded_images_with_words_for_labels(tmp_path: Path) -> None:
    rows = [
        {
            "img": {"bytes": files.encoded(files.picture(label, number, 20)), "path": None},
            "fine_label": files.NAMES[label],
        }
        for number in range(5)
        for label in range(4)
    ]
    path = files.table(tmp_path / "few.parquet", rows)
    source = open_source(files.config("cv", path, CLASSES, "dataset.image=16", "dataset.channels=1"))
    assert source.shape == DataShape("image", (1, 16, 16), 4)
    assert source.train.batch(np.arange(4))["inputs"].shape == (4, 1, 16, 16)
    assert sorted({*source.train.batch(np.arange(len(source.train)))["labels"].tolist()}) == [0, 1, 2, 3]


def test_the_right_number_of_classes_is_said(tmp_path: Path) -> None:
    folder = files.image_folder(tmp_path / "few", 2)
    with pytest.raises(DataError, match=r"column 'label' has 4 labels, dataset\.classes says 100"):
        open_source(files.config("cv", folder, "dataset.classes=100"))
    rows = [{"image": {"bytes": files.encoded(files.picture(0, 1)), "path": None}, "label": label} for label in (0, 7)]
    path = files.table(tmp_path / "odd.parquet", rows)
    with pytest.raises(DataError, match=r"has 8 labels, dataset\.classes says 4"):
        open_source(files.config("cv", path, CLASSES))
    with pytest.raises(DataError, match=r"dataset\.input: there is no column 'pixel'; there are: image, label"):
        open_source(files.config("cv", path, CLASSES, "dataset.input=pixel"))


def test_augmented_samples_depend_on_seed_and_position_alone(tmp_path: Path) -> None:
    folder = files.image_folder(tmp_path / "few")
    settings = [CLASSES, "dataset.augment=[crop, flip]"]
    source, again, other = (
        open_source(files.config("cv", folder, *settings, f"run.seed={seed}")) for seed in (1, 1, 2)
    )
    indices = np.array([5, 2, 5, 7])
    batch = training_batch(source.train, indices, 40)["inputs"]
    assert np.array_equal(batch, training_batch(again.train, indices, 40)["inputs"])
    # The same sample elsewhere in the order looks another way; cut out of another batch it does not.
    assert not np.array_equal(batch[0], batch[2])
    assert np.array_equal(batch[2:], training_batch(source.train, indices[2:], 42)["inputs"])
    assert not np.array_equal(batch, training_batch(source.train, indices, 41)["inputs"])
    assert not np.array_equal(batch, training_batch(other.train, indices, 40)["inputs"])
    assert np.array_equal(source.train.batch(indices)["inputs"], other.train.batch(indices)["inputs"])
    labels = training_batch(source.train, indices, 40)["labels"]
    assert np.array_equal(labels, source.train.batch(indices)["labels"])


def look(side: int, *augment: str) -> Look:
    return Look.of(DatasetSection.model_validate({"image": side, "augment": augment, "channels": 1}), 1)


def test_flips_are_mirrored_and_half_of_all() -> None:
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    plain = look(8).pixels(picture, None)
    found = [look(8, "flip").pixels(picture, Draws(seed)) for seed in range(200)]
    mirrored = [np.array_equal(pixels, plain[:, :, ::-1]) for pixels in found]
    assert all(
        is_mirrored or np.array_equal(pixels, plain) for is_mirrored, pixels in zip(mirrored, found, strict=True)
    )
    assert 70 < sum(mirrored) < 130


def test_a_small_picture_is_moved_within_a_border() -> None:
    picture = Image.fromarray(np.full((16, 16), 255, np.uint8))
    found = [look(16, "crop").pixels(picture, Draws(seed)) for seed in range(100)]
    # What is black has come in from the border, of 2 pixels at most.
    widths = {int((pixels[0] < 0).all(0).sum()) for pixels in found}
    assert widths == {0, 1, 2}


def test_a_large_picture_is_cut_and_brought_to_size() -> None:
    columns = np.tile(np.linspace(0, 255, 100).astype(np.uint8), (60, 1))
    picture = Image.fromarray(columns)
    found = [look(16, "crop").pixels(picture, Draws(seed)) for seed in range(50)]
    assert {pixels.shape for pixels in found} == {(1, 16, 16)}
    # Of a ramp from left to right a crop takes a part.
    spans = [float(pixels[0, 0, -1] - pixels[0, 0, 0]) for pixels in found]
    assert 0.5 < min(spans) < 1.2 < max(spans) < 2.0
    centred = look(16).pixels(picture, None)
    assert float(centred[0, 0, 0]) == pytest.approx(2 * 0.2 - 1, abs=0.06)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": b"no picture", "path": None}, "label": label} for label in (0, 1, 2, 3)]
    source = open_source(files.config("cv", files.table(tmp_path / "bad.parquet", rows), CLASSES))
    with pytest.raises(DataError, match="is no image that can be read"):
        source.train.batch(np.array([0]))


def test_crops_and_flips_follow_from_raw_draws(tmp_path: Path) -> None:
    """Numpy promises raw draws only, and machines with different versions must make the same bytes."""
    folder = files.image_folder(tmp_path / "few")
    config = files.config("cv", folder, CLASSES, "dataset.augment=[crop, flip]", "run.seed=5")
    split = open_source(config).train
    plain = split.batch(np.zeros(20, np.int64))["inputs"]
    found = training_batch(split, np.zeros(20, np.int64), 40)["inputs"]
    for place, (pixels, picture) in enumerate(zip(found, plain, strict=True)):
        raw = [int(draw) for draw in np.random.PCG64(np.random.SeedSequence((5, 40 + place))).random_raw(3)]
        left, top = (4 + (-4 + (draw * 9 >> 64)) for draw in raw[:2])
        bordered = np.pad(picture, ((0, 0), (4, 4), (4, 4)), constant_values=-1.0)
        expected = bordered[:, top : top + 32, left : left + 32]
        assert np.array_equal(pixels, expected[:, :, ::-1] if raw[2] >> 63 == 0 else expected)


def test_draws_are_the_same_for_ever() -> None:
    draws = Draws(5, 40)
    assert [draws.integer(-3, 4) for _ in range(6)] == [-3, -1, 0, -1, 2, -3]
    assert [draws.uniform(2.0, 3.0) for _ in range(2)] == [2.85139464833458, 2.5223702889512767]
    many = [Draws(1, place).integer(0, 3) for place in range(300)]
    assert {many.count(number) > 70 for number in range(3)} == {True}
    assert all(0.5 <= Draws(2, place).uniform(0.5, 0.75) < 0.75 for place in range(100))


def jpeg(side: tuple[int, int]) -> bytes:
    """A picture that is red on the left and blue on the right."""
    picture = Image.new("RGB", side, (220, 30, 30))
    picture.paste((30, 30, 220), (side[0] // 2, 0, side[0], side[1]))
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("side", "decoded"), [(32, (375, 250)), (100, (1500, 1000)), (200, (3000, 2000)), (400, (3000, 2000))]
)
def test_a_large_jpeg_is_decoded_no_larger_than_is_needed(side: int, decoded: tuple[int, int]) -> None:
    own = Look.of(DatasetSection(image=side, augment=["crop"]), 1)
    with Image.open(io.BytesIO(jpeg((3000, 2000)))) as picture:
        pixels = own.pixels(picture, None)
        assert picture.size == decoded
    with Image.open(io.BytesIO(jpeg((3000, 2000)))) as picture:
        picture.load()
        whole = own.pixels(picture, None)
    assert float(np.abs(pixels - whole).mean()) < 0.01
    with Image.open(io.BytesIO(jpeg((3000, 2000)))) as picture:
        assert own.pixels(picture, Draws(1)).shape == (3, side, side)


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    """Ten kilobytes of file are 65 million pixels."""
    bomb = Image.new("1", (10_000, PIXELS // 10_000 + 1))
    content = files.encoded(bomb)
    assert len(content) < 20_000
    rows = [{"image": {"bytes": content, "path": None}, "label": label} for label in range(4)]
    source = open_source(files.config("cv", files.table(tmp_path / "bomb.parquet", rows), CLASSES))
    with pytest.raises(DataError, match=r"row \d: 10000 x 6401 pixels are more than 64000000"):
        source.train.batch(np.array([0]))


def test_labels_that_are_no_whole_numbers_are_named(tmp_path: Path) -> None:
    image = {"bytes": files.encoded(files.picture(0, 1)), "path": None}

    def opened(name: str, labels: list[object]) -> Source:
        rows = [{"image": image, "label": label} for label in labels]
        return open_source(files.config("cv", files.table(tmp_path / f"{name}.parquet", rows), CLASSES))

    assert len(opened("whole", [0.0, 1.0, 2.0, 3.0]).train) == 3
    for name, odd in (("part", 0.7), ("nan", float("nan")), ("inf", float("inf")), ("huge", 1e300), ("none", None)):
        with pytest.raises(DataError, match=r"column 'label' holds .*, which is no label"):
            opened(name, [0.0, odd, 2.0, 3.0])
