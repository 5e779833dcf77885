"""A user's own model: a class with `blocks()`, found by `package.module:Class` or by the name of an entry point.

The class is made with the shape of the data and the run's options, and its `blocks()` gives `BlockSpec`s. Their modules
need to know nothing of distqat: their constructors and their dropouts draw from generators that are seeded for them.

To import a module is to run it, so `check` comes first where the name is from another peer.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from torch import nn

from distqat.errors import ModelError
from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec

GROUP = "distqat.models"
"""The group of entry points."""


def is_own(name: str) -> bool:
    """Whether that is the name of a class, or of an entry point that is installed."""
    return ":" in name or _entry_point(name) is not None


def check(name: str, allowed: Iterable[str]) -> None:
    """Raise ModelError for a class that none of these globs allows, and that no installed package names either."""
    if ":" not in name or _entry_point(name) is not None or any(fnmatchcase(name, glob) for glob in allowed):
        return
    raise ModelError(
        f"model {name} is code, and what a run names is not imported just so: if this peer may run it, "
        f"let daemon.own_models hold '{name}', or a glob such as '{name.partition(':')[0]}:*'"
    )


def blocks(name: str, options: dict[str, object], data: DataShape) -> list[BlockSpec]:
    """The blocks of a user's model. Raises ModelError when there is no such class or it gives none."""
    kind = _find(name)
    try:
        found = _checked(name, kind(data, **options).blocks())
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        # Whatever that code does, the fault is named and the daemon goes on.
        raise ModelError(f"model {name} cannot be made of these options and data: {_said(error)}") from error
    return found


def _checked(name: str, found: Sequence[BlockSpec]) -> list[BlockSpec]:
    if not found or not all(isinstance(block, BlockSpec) for block in found):
        raise ModelError(f"model {name}: blocks() must give at least one BlockSpec, and nothing else")
    if not all(math.isfinite(block.cost) and block.cost > 0 for block in found):
        raise ModelError(f"model {name}: the cost of a block is more than 0, and finite")
    return [replace(block, is_foreign=True, make=partial(_make, name, block)) for block in found]


def _make(name: str, block: BlockSpec) -> nn.Module:
    """What its constructor makes."""
    try:
        return block.make()
    except (Exception, SystemExit) as error:
        raise ModelError(f"model {name}: block '{block.name}' cannot be built: {_said(error)}") from error


def _entry_point(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=name)), None)


def _find(name: str) -> type:
    entry = _entry_point(name)
    path = name if entry is None else entry.value
    module, _, attribute = path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute, None)
    except (Exception, SystemExit) as error:
        why = _said(error)
        raise ModelError(f"model {name}: module '{module}' cannot be imported on this peer: {why}") from error
    if not isinstance(kind, type) or not callable(getattr(kind, "blocks", None)):
        raise ModelError(f"model {name}: '{attribute}' in {module} is no class with a method blocks()")
    return kind


def _said(error: BaseException) -> str:
    """What went wrong in a user's code; those of other kinds say little without their name."""
    return str(error) if isinstance(error, TypeError | ValueError | ImportError) else f"{type(error).__name__}: {error}"
