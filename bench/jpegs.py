"""Pictures that have to be decoded, as a data set; run as a module it is a data server of them."""

from __future__ import annotations

import io
import socket
import sys

import numpy as np
from PIL import Image

from distqat.config import RunConfig
from distqat.data.server.process import main
from distqat.data.sources.splits import Arrays, Indices, Source
from distqat.model.shapes import DataShape

SIDE = 96
"""Pixels of a stored picture, of which a piece of `CUT` is given out."""

CUT = 64
PICTURES = 2048
HELD_OUT = 64
DIFFERENT = 64
"""Of the pictures; the others are these again."""


class Jpegs:
    """float32 [n, 3, 64, 64] and labels int64 [n]."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._files = [_jpeg(number) for number in range(DIFFERENT)]

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Indices) -> Arrays:
        inputs = np.empty((len(indices), 3, CUT, CUT), np.float32)
        for row, index in enumerate(indices):
            with Image.open(io.BytesIO(self._files[index % DIFFERENT])) as picture:
                place = int(index) % (SIDE - CUT)
                pixels = np.asarray(picture)[place : place + CUT, place : place + CUT]
            inputs[row] = pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0
        return {"inputs": inputs, "labels": indices % 10}


def open_jpegs(config: RunConfig) -> Source:
    """The data set, whatever the settings say."""
    return Source("jpegs", "cv", DataShape("image", (3, CUT, CUT), 10), Jpegs(PICTURES), Jpegs(HELD_OUT))


def _jpeg(number: int) -> bytes:
    draws = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(draws).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1])), open_jpegs))
