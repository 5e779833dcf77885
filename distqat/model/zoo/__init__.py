"""The models that can be trained, each of them a list of blocks.

`plan` turns a name and options into a plan, of which nothing is built; `blocks.build` builds one block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from distqat.errors import ModelError
from distqat.model.shapes import DataShape
from distqat.model.zoo import gpt, mlp, resnet
from distqat.model.zoo.blocks import BlockSpec, HiddenShape, ModelPlan
from distqat.sections import ModelSection

_MODELS: Mapping[str, Callable[[dict[str, object], DataShape], list[BlockSpec]]] = {
    "mlp": mlp.blocks,
    "resnet": resnet.blocks,
    "resnet18": resnet.blocks18,
    "gpt": gpt.blocks,
}


def names() -> list[str]:
    """Every model of the zoo."""
    return sorted(_MODELS)


def plan(section: ModelSection, data: DataShape) -> ModelPlan:
    """The uncut model, not built. Raises ModelError for a name, an option or data that do not fit."""
    make = _MODELS.get(section.name)
    if make is None:
        raise ModelError(f"unknown model '{section.name}'; there are: {', '.join(names())}")
    if data.kind == "image":
        inputs = HiddenShape(data.inputs)
    else:
        inputs = HiddenShape(data.inputs, torch.int64, below=data.classes)
    return ModelPlan(section.name, inputs, tuple(make(dict(section.options), data)))
