"""Residual networks for images (He et al., Deep Residual Learning for Image Recognition, 2016).

`resnet` is a small one for images of 8x8 to 32x32; `resnet18`, `resnet50` and `resnet101` are the standard ones, with
the usual stem for small images (3x3, no pooling) up to 64 pixels. Bottlenecks halve the image in their 3x3 convolution.

Shapes: B samples, K channels, H height, W width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BatchNorm, BlockSpec, HiddenShape
from distqat.model.zoo.options import Options

SMALL_IMAGE = 64
"""Pixels up to which an image keeps its size in the stem of a standard network."""

EXPANSION = 4
"""How much wider what leaves a bottleneck is than its 3x3 convolution."""


@dataclass(frozen=True)
class Standard:
    """What makes a network of the paper."""

    groups: tuple[int, ...]
    is_narrowing: bool = False
    """Whether its blocks are bottlenecks."""


STANDARD = {
    "resnet18": Standard((2, 2, 2, 2)),
    "resnet50": Standard((3, 4, 6, 3), is_narrowing=True),
    "resnet101": Standard((3, 4, 23, 3), is_narrowing=True),
}


class ResNetOptions(Options):
    """Sizes of `resnet`."""

    width: int = Field(
        16, ge=1, le=4096, description="Channels of the first group; each further one has twice as many."
    )
    blocks: list[int] = Field([1, 1], min_length=1, max_length=8, description="Residual blocks of each group.")

    @field_validator("blocks")
    @classmethod
    def _groups_have_blocks(cls, blocks: list[int]) -> list[int]:
        if not all(1 <= number <= 256 for number in blocks):
            raise ValueError("each group has 1 to 256 blocks")
        return blocks


class StandardOptions(Options):
    """Sizes of a standard network."""

    width: int = Field(64, ge=1, le=4096, description="Channels of the first of four groups; 64 is the standard.")


def _convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    """Without bias, since a batch norm follows."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Stem(nn.Module):
    """From the image to the channels of the first group."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, pool: bool) -> None:
        super().__init__()
        self.convolution = _convolution(inputs, outputs, size, stride)
        self.norm = BatchNorm(outputs)
        self.pool = pool

    def forward(self, image_BKHW: Tensor) -> Tensor:
        hidden_BKHW = F.relu(self.norm(self.convolution(image_BKHW)))
        return F.max_pool2d(hidden_BKHW, 3, stride=2, padding=1) if self.pool else hidden_BKHW


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.first_norm = BatchNorm(outputs)
        self.second = _convolution(outputs, outputs, 3, 1)
        self.second_norm = BatchNorm(outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), BatchNorm(outputs))

    def forward(self, hidden_BKHW: Tensor) -> Tensor:
        added_BKHW = F.relu(self.first_norm(self.first(hidden_BKHW)))
        added_BKHW = self.second_norm(self.second(added_BKHW))
        kept_BKHW = hidden_BKHW if self.shortcut is None else self.shortcut(hidden_BKHW)
        return F.relu(added_BKHW + kept_BKHW)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1 that narrow and widen, beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.first = _convolution(inputs, width, 1, 1)
        self.first_norm = BatchNorm(width)
        self.second = _convolution(width, width, 3, stride)
        self.second_norm = BatchNorm(width)
        self.third = _convolution(width, outputs, 1, 1)
        self.third_norm = BatchNorm(outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), BatchNorm(outputs))

    def forward(self, hidden_BKHW: Tensor) -> Tensor:
        added_BKHW = F.relu(self.first_norm(self.first(hidden_BKHW)))
        added_BKHW = F.relu(self.second_norm(self.second(added_BKHW)))
        added_BKHW = self.third_norm(self.third(added_BKHW))
        kept_BKHW = hidden_BKHW if self.shortcut is None else self.shortcut(hidden_BKHW)
        return F.relu(added_BKHW + kept_BKHW)


class Head(nn.Module):
    """Average over the image, and scores of the classes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, hidden_BKHW: Tensor) -> Tensor:
        scores_BC: Tensor = self.linear(hidden_BKHW.mean((2, 3)))
        return scores_BC


class _Builder:
    """Adds blocks one by one, and knows what leaves the last one."""

    def __init__(self, data: DataShape) -> None:
        self.channels, self.height, self.width = data.inputs
        self.specs: list[BlockSpec] = []

    def add(self, name: str, make: Callable[[], nn.Module], channels: int, stride: int, weights: int) -> None:
        """A block whose convolutions have so many weights; each is used once for each pixel that leaves."""
        self.height, self.width = -(-self.height // stride), -(-self.width // stride)
        self.channels = channels
        pixels = self.height * self.width
        # Norms, activations and additions pass over every element several times, which counts on small images.
        cost = 2.0 * weights * pixels + 20.0 * channels * pixels
        self.specs.append(BlockSpec(name, make, cost, HiddenShape((channels, self.height, self.width))))

    def residual(self, name: str, channels: int, stride: int) -> None:
        inputs = self.channels
        weights = 9 * channels * (inputs + channels)
        if stride != 1 or inputs != channels:
            weights += inputs * channels
        self.add(name, partial(Residual, inputs, channels, stride), channels, stride, weights)

    def bottleneck(self, name: str, width: int, stride: int) -> None:
        inputs, outputs = self.channels, EXPANSION * width
        # The first convolution is used before the image is halved.
        weights = stride * stride * inputs * width + 9 * width * width + width * outputs
        if stride != 1 or inputs != outputs:
            weights += inputs * outputs
        self.add(name, partial(Bottleneck, inputs, width, stride), outputs, stride, weights)

    def groups(self, width: int, blocks: Sequence[int], is_narrowing: bool = False) -> None:
        """Groups of residual blocks; each but the first halves the image and doubles the channels."""
        add = self.bottleneck if is_narrowing else self.residual
        for group, number in enumerate(blocks):
            for block in range(number):
                stride = 2 if group and not block else 1
                add(f"group{group}.{block}", width << group, stride)

    def head(self, classes: int) -> None:
        cost = 1.0 * self.channels * self.height * self.width + 2.0 * self.channels * classes
        head = partial(Head, self.channels, classes)
        self.specs.append(BlockSpec("head", head, cost, HiddenShape((classes,))))


def blocks(values: dict[str, object], data: DataShape) -> list[BlockSpec]:
    """The blocks of `resnet`. Raises ModelError for options or data that do not fit."""
    options = ResNetOptions.read("resnet", values)
    builder = _builder("resnet", data)
    stem = partial(Stem, builder.channels, options.width, 3, 1, False)
    builder.add("stem", stem, options.width, 1, 9 * builder.channels * options.width)
    builder.groups(options.width, options.blocks)
    builder.head(data.classes)
    return builder.specs


def standard(model: str, values: dict[str, object], data: DataShape) -> list[BlockSpec]:
    """The blocks of a standard network. Raises ModelError for options or data that do not fit."""
    options, network = StandardOptions.read(model, values), STANDARD[model]
    builder = _builder(model, data)
    is_small = max(data.inputs[1:]) <= SMALL_IMAGE
    if is_small:
        stem = partial(Stem, builder.channels, options.width, 3, 1, False)
        builder.add("stem", stem, options.width, 1, 9 * builder.channels * options.width)
    else:
        stem = partial(Stem, builder.channels, options.width, 7, 2, True)
        # Half of the stride is the pooling's, so each weight is used four times for a pixel that leaves.
        builder.add("stem", stem, options.width, 4, 4 * 49 * builder.channels * options.width)
    builder.groups(options.width, network.groups, network.is_narrowing)
    builder.head(data.classes)
    return builder.specs


def _builder(model: str, data: DataShape) -> _Builder:
    if data.kind != "image":
        raise ModelError(f"model {model} takes images, and the data are {data.kind}")
    return _Builder(data)
