"""A user's own model: a class with `blocks()`, found by `package.module:Class` or by the name of an entry point.

The class is made with the shape of the data and the run's options, and its `blocks()` gives `BlockSpec`s. Their modules
need to know nothing of distqat: their constructors and their dropouts draw from generators that are seeded for them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from distqat.errors import ModelError
from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec

GROUP = "distqat.models"
"""The group of entry points."""


def is_own(name: str) -> bool:
    """Whether that is the name of a class, or of an entry point that is installed."""
    return ":" in name or _entry_point(name) is not None


def blocks(name: str, options: dict[str, object], data: DataShape) -> list[BlockSpec]:
    """The blocks of a user's model. Raises ModelError when there is no such class or it gives none."""
    kind = _find(name)
    try:
        model = kind(data, **options)
        found = model.blocks()
    except (TypeError, ValueError) as error:
        raise ModelError(f"model {name} cannot be made of these options and data: {error}") from error
    return _checked(name, found)


def _checked(name: str, found: Sequence[BlockSpec]) -> list[BlockSpec]:
    if not found or not all(isinstance(block, BlockSpec) for block in found):
        raise ModelError(f"model {name}: blocks() must give at least one BlockSpec, and nothing else")
    if not all(math.isfinite(block.cost) and block.cost > 0 for block in found):
        raise ModelError(f"model {name}: the cost of a block is more than 0, and finite")
    return [replace(block, is_foreign=True) for block in found]


def _entry_point(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=name)), None)


def _find(name: str) -> type:
    entry = _entry_point(name)
    path = name if entry is None else entry.value
    module, _, attribute = path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:
        raise ModelError(f"model {name}: module '{module}' cannot be imported on this peer: {error}") from None
    if not isinstance(kind, type) or not callable(getattr(kind, "blocks", None)):
        raise ModelError(f"model {name}: '{attribute}' in {module} is no class with a method blocks()")
    return kind
