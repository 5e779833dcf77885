"""The example of docs/models.md, which is this file: a user's own model. It knows only what a block is."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec, HiddenShape


class Mixer(nn.Module):
    """Rows of an image are mixed, then columns; beside the stream."""

    def __init__(self, rows: int, columns: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(columns)
        self.rows, self.columns = nn.Linear(rows, rows), nn.Linear(columns, columns)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.flatten(0, -3)  # An image's one channel is not there after the first block.
        mixed = self.rows(self.norm(hidden).transpose(1, 2)).transpose(1, 2)
        return torch.add(hidden, self.dropout(self.columns(torch.relu(mixed))))


class Toy:
    """Made on every peer with the shape of the data and `model.options`; gives blocks, and builds none."""

    def __init__(self, data: DataShape, depth: int = 3, dropout: float = 0.1) -> None:
        if data.kind != "image":
            raise ValueError(f"takes images, not {data.kind}")
        (_, self.rows, self.columns), self.classes = data.inputs, data.classes
        self.depth, self.dropout = depth, dropout

    def blocks(self) -> list[BlockSpec]:
        pixels, shape = self.rows * self.columns, HiddenShape((self.rows, self.columns))
        mixer, cost = partial(Mixer, self.rows, self.columns, self.dropout), 2.0 * pixels * (self.rows + self.columns)
        head = BlockSpec("head", self.head, 2.0 * pixels * self.classes, HiddenShape((self.classes,)))
        return [*(BlockSpec(f"mixer{number}", mixer, cost, shape) for number in range(self.depth)), head]

    def head(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(self.rows * self.columns, self.classes))
