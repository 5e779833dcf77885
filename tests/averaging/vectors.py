"""Vectors and states to average."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distqat.averaging.outer import OuterState, Part
from distqat.averaging.phases import Phase
from distqat.averaging.spans import Shape

SHAPES = (Shape(700, 777), Shape(300, 300), Shape(0, 41), Shape(513, 1025))
"""Of fragments with and without buffers, with boundaries within blocks."""


def normal(elements: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed)) * scale


def outer_state(shapes: Sequence[Shape] = SHAPES, seed: int = 0, number: int = 3) -> OuterState:
    """With anchors and momenta that are not zero."""
    parts = [
        Part.of(normal(shape.num_elements, seed + 10 * index), normal(shape.num_parameters, seed + 10 * index + 1))
        for index, shape in enumerate(shapes)
    ]
    return OuterState.of(parts, number)


def elements(state: OuterState, how: Phase) -> int:
    return sum(state.parts[index].shape.num_elements for index in how.fragments)


def phase_of(is_plain: bool, *fragments: int) -> Phase:
    if is_plain:
        return Phase(True, 1, 1.0, 0.0, fragments)
    return Phase(False, 10, 0.7, 0.9, fragments)


def drifted(state: OuterState, how: Phase, seed: int, scale: float = 0.1) -> torch.Tensor:
    """Local values near the anchor."""
    return state.gather(how.fragments) + normal(elements(state, how), seed, scale)
