"""Images and their labels: decoded when they are wanted, so that memory holds a batch and no more."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distqat.data.sources.library import columns
from distqat.data.sources.library.draws import Draws
from distqat.data.sources.library.tables import open_tables, split_rows
from distqat.data.sources.splits import Array, Arrays, Indices, Split, expect_indices
from distqat.data_sections import DatasetSection
from distqat.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

BORDER = 8
"""A small image gets a border of an eighth of its side before it is cropped."""

AREA, RATIO = (0.35, 1.0), (3 / 4, 4 / 3)
"""Of a large image, the part that a crop takes, and its width by its height."""

PIXELS = 64_000_000
"""Of the largest picture, as it is kept: more would take too much memory in each worker."""

_GAP = 3.0
"""A picture is made smaller in one step as long as it stays that many times as large as what is wanted of it."""


def load(section: DatasetSection, seed: int) -> tuple[Split, Split]:
    """What is trained on, augmented by (seed, position), and what is held out. Raises DataError."""
    import datasets

    tables = open_tables(section)
    parts = [table.rows for table in tables if table is not None]
    image = columns.find(parts[0], "input", section.input, columns.IMAGES)
    label = columns.find(parts[0], "target", section.target, columns.LABELS)
    numbers = columns.labels(parts, label, section.classes)
    try:
        parts = [rows.select_columns([image]).cast_column(image, datasets.Image(decode=False)) for rows in parts]
    except (TypeError, ValueError) as error:
        raise DataError(f"column '{image}' of {section.path} holds no images: {error}") from None
    look = Look.of(section, seed)
    if len(parts) == 1:
        chosen = split_rows(len(numbers[0]), section.held_out)
        train, held_out = (ImageSplit(parts[0], image, rows, numbers[0], look) for rows in chosen)
        return train, held_out
    train, held_out = (
        ImageSplit(rows, image, np.arange(len(own)), own, look) for rows, own in zip(parts, numbers, strict=True)
    )
    return train, held_out


@dataclass(frozen=True, eq=False)
class Look:
    """What becomes of a picture."""

    side: int
    mode: str
    augment: tuple[str, ...]
    mean: Array
    std: Array
    seed: int

    @classmethod
    def of(cls, section: DatasetSection, seed: int) -> Look:
        """As the section says."""
        mean, std = (
            np.array(values or [0.5] * section.channels, np.float32)[:, None, None]
            for values in (section.mean, section.std)
        )
        mode = "RGB" if section.channels == 3 else "L"
        return cls(section.image, mode, tuple(section.augment), mean, std, seed)

    def pixels(self, picture: Image, draw: Draws | None) -> Array:
        """Float32 [C, side, side]; varied if there is something to draw from. Raises DataError for a picture that is
        too large. A large JPEG is decoded at an eighth, a quarter or a half of its size where that is enough."""
        width, height = picture.size
        if width * height > PIXELS:
            raise DataError(f"{width} x {height} pixels are more than {PIXELS}")
        enough = round(2 * _GAP * self.side)  # A crop has at least half the side.
        picture.draft(None, (enough, enough))
        if picture.mode != self.mode:
            picture = picture.convert(self.mode)
        if draw is not None and "crop" in self.augment:
            picture = self._cropped(picture, draw)
        else:
            picture = self._centred(picture)
        pixels = np.asarray(picture, np.float32).reshape(self.side, self.side, -1).transpose(2, 0, 1) / 255
        if draw is not None and "flip" in self.augment and draw.uniform(0.0, 1.0) < 0.5:
            pixels = pixels[:, :, ::-1]
        return (pixels - self.mean) / self.std

    def _centred(self, picture: Image) -> Image:
        """The largest square in the middle, brought to size."""
        if picture.size == (self.side, self.side):
            return picture
        width, height = picture.size
        square = min(width, height)
        left, top = (width - square) // 2, (height - square) // 2
        return self._sized(picture, (left, top, left + square, top + square))

    def _cropped(self, picture: Image, draw: Draws) -> Image:
        """Of a small picture the same size at another place, within a black border; of a large one a part."""
        width, height = picture.size
        if max(width, height) <= self.side:
            border = max(1, self.side // BORDER)
            left, top = (draw.integer(-border, border + 1) for _ in range(2))
            return self._centred(picture).crop((left, top, left + self.side, top + self.side))
        area = width * height * draw.uniform(*AREA)
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide = min(width, max(1, round(math.sqrt(area * ratio))))
        high = min(height, max(1, round(math.sqrt(area / ratio))))
        left, top = draw.integer(0, width - wide + 1), draw.integer(0, height - high + 1)
        return self._sized(picture, (left, top, left + wide, top + high))

    def _sized(self, picture: Image, box: tuple[int, int, int, int]) -> Image:
        from PIL.Image import Resampling

        return picture.resize((self.side, self.side), Resampling.BILINEAR, box=box, reducing_gap=_GAP)


class ImageSplit:
    """Some rows of a table: "inputs" float32 [n, C, side, side], "labels" int64 [n]."""

    def __init__(self, table: Any, column: str, rows: Indices, labels: Indices, look: Look) -> None:
        self._table = table
        self._column = column
        self._rows = rows
        self._labels = labels  # Of all rows of the table.
        self._look = look

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Indices) -> Arrays:
        return self._batch(indices, [None for _ in indices])

    def batch_at(self, indices: Indices, begin: int) -> Arrays:
        """What is drawn depends on the run's seed and the position alone."""
        if not self._look.augment:
            return self.batch(indices)
        places = range(begin, begin + len(indices))
        return self._batch(indices, [Draws(self._look.seed, place) for place in places])

    def _batch(self, indices: Indices, draws: Sequence[Draws | None]) -> Arrays:
        expect_indices(indices, len(self))
        rows = self._rows[indices]
        side, channels = self._look.side, len(self._look.mean)
        inputs = np.empty((len(rows), channels, side, side), np.float32)
        files = self._table[rows.tolist()][self._column] if len(rows) else []
        for place, (row, file, draw) in enumerate(zip(rows, files, draws, strict=True)):
            inputs[place] = self._pixels(int(row), file, draw)
        return {"inputs": inputs, "labels": self._labels[rows]}

    def _pixels(self, row: int, file: dict[str, Any] | None, draw: Draws | None) -> Array:
        from PIL import Image

        if file is None:
            raise DataError(f"row {row} has no image")
        try:
            content = file["bytes"]
            with Image.open(io.BytesIO(content) if content is not None else file["path"]) as picture:
                return self._look.pixels(picture, draw)
        except DataError as error:
            raise DataError(f"row {row}: {error}") from None
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise DataError(f"row {row} is no image that can be read: {error}") from None
