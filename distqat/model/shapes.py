"""What one sample of a data set looks like. Known to `data` and to the zoo; knows neither, and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distqat.errors import ModelError

_DIMENSIONS = {"image": ("channels", "height", "width"), "tokens": ("sequence",), "audio": ("samples",)}


@dataclass(frozen=True)
class DataShape:
    """Shape of a sample, without the batch dimension.

    Images are float32 of `inputs` = (channels, height, width), and `classes` counts their labels. Tokens are int64 of
    `inputs` = (sequence,), and `classes` is the size of the vocabulary. Audio is float32 of `inputs` = (samples,), of
    one channel with zeros behind a shorter recording; `classes` is the size of the vocabulary, in which 0 is the blank.
    Raises ModelError when the numbers make no sense.
    """

    kind: Literal["image", "tokens", "audio"]
    inputs: tuple[int, ...]
    classes: int

    def __post_init__(self) -> None:
        dimensions = _DIMENSIONS.get(self.kind)
        if dimensions is None:
            raise ModelError(f"data of kind '{self.kind}' is not known; there are: {', '.join(_DIMENSIONS)}")
        if len(self.inputs) != len(dimensions) or min(self.inputs) < 1:
            raise ModelError(f"a sample of kind {self.kind} has ({', '.join(dimensions)}), got {self.inputs}")
        if self.classes < 2:
            raise ModelError(f"{self.classes} classes; there must be at least 2")
