"""A multilayer perceptron for images: the smallest thing that can be cut.

Shapes: B samples, I elements of an image, H hidden, C classes.
"""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec, HiddenShape
from distqat.model.zoo.options import Options


class MlpOptions(Options):
    """Sizes of `mlp`."""

    hidden: int = Field(128, ge=1, le=1 << 16, description="Width of the hidden layers.")
    depth: int = Field(4, ge=1, le=1024, description="Number of hidden layers, each of them a block.")


class Layer(nn.Module):
    """A hidden layer."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, hidden)
        self.linear.initial_std = (2.0 / inputs) ** 0.5

    def forward(self, hidden_BI: Tensor) -> Tensor:
        return F.relu(self.linear(hidden_BI.flatten(1)))


class Head(nn.Module):
    """Scores of the classes."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, classes)

    def forward(self, hidden_BH: Tensor) -> Tensor:
        scores_BC: Tensor = self.linear(hidden_BH)
        return scores_BC


def blocks(values: dict[str, object], data: DataShape) -> list[BlockSpec]:
    """The blocks of `mlp`. Raises ModelError for options or data that do not fit."""
    options = MlpOptions.read("mlp", values)
    if data.kind != "image":
        raise ModelError(f"model mlp takes images, and the data are {data.kind}")
    width = HiddenShape((options.hidden,))
    sizes = [math.prod(data.inputs)] + [options.hidden] * (options.depth - 1)
    layers = [
        BlockSpec(f"layer{number}", partial(Layer, size, options.hidden), 2.0 * size * options.hidden, width)
        for number, size in enumerate(sizes)
    ]
    head = partial(Head, options.hidden, data.classes)
    cost = 2.0 * options.hidden * data.classes
    return [*layers, BlockSpec("head", head, cost, HiddenShape((data.classes,)))]
