"""The models that can be trained, each of them a list of blocks.

`plan` turns a name and options into a plan, of which nothing is built; `blocks.build` builds one block. What is on
another library's modules is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch

from distqat.errors import ModelError
from distqat.model.shapes import DataShape
from distqat.model.zoo import gpt, mlp, own, resnet
from distqat.model.zoo.blocks import BlockSpec, HiddenShape, ModelPlan
from distqat.sections import ModelSection

_MODELS: Mapping[str, Callable[[dict[str, object], DataShape], list[BlockSpec]]] = {
    "mlp": mlp.blocks,
    "resnet": resnet.blocks,
    **{name: partial(resnet.standard, name) for name in resnet.STANDARD},
    "gpt": gpt.blocks,
}

_FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "distilgpt2": ("gpt2", {"n_layer": 6}),
    "gpt2": ("gpt2", {}),
    "gpt2-medium": ("gpt2", {"n_layer": 24, "n_embd": 1024, "n_head": 16}),
    "gpt2-large": ("gpt2", {"n_layer": 36, "n_embd": 1280, "n_head": 20}),
    "gpt2-xl": ("gpt2", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    "gpt-neo-125m": ("gpt_neo", {"num_layers": 12, "hidden_size": 768, "num_heads": 12}),
    "gpt-neo-1.3b": ("gpt_neo", {}),
    "llama": ("llama", {}),
    "wav2vec2": ("wav2vec2", {}),
    "wav2vec2-large-lv60": (
        "wav2vec2",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "conv_bias": True,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
        },
    ),
}
"""The module in `families` and the sizes of each model that is on modules of `transformers`."""


def names() -> list[str]:
    """Every model of the zoo."""
    return sorted([*_MODELS, *_FAMILIES])


def plan(section: ModelSection, data: DataShape) -> ModelPlan:
    """The uncut model, not built. Raises ModelError for a name, an option or data that do not fit."""
    if data.kind == "tokens":
        inputs = HiddenShape(data.inputs, torch.int64, below=data.classes)
    else:
        inputs = HiddenShape(data.inputs)
    return ModelPlan(section.name, inputs, tuple(_blocks(section, data)))


def _blocks(section: ModelSection, data: DataShape) -> list[BlockSpec]:
    family = _FAMILIES.get(section.name)
    if family is not None:
        return _of_family(*family, section, data)
    if section.pretrained:
        raise ModelError(f"model {section.name} has no pretrained numbers; leave model.pretrained empty")
    make = _MODELS.get(section.name)
    if make is not None:
        return make(dict(section.options), data)
    if own.is_own(section.name):
        return own.blocks(section.name, dict(section.options), data)
    raise ModelError(
        f"unknown model '{section.name}'; there are: {', '.join(names())}; your own is called package.module:Class"
    )


def _of_family(module: str, sizes: Mapping[str, Any], section: ModelSection, data: DataShape) -> list[BlockSpec]:
    try:
        family = import_module(f"distqat.model.zoo.families.{module}")
    except ModuleNotFoundError as error:
        raise ModelError(f"model {section.name} needs {error.name}; install distqat[models]") from None
    found: list[BlockSpec] = family.blocks(section, data, sizes)
    return found
