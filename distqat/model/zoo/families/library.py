"""What the families share: a config of the library from a run's options, and the first numbers of their blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from distqat.errors import ModelError
from distqat.model.zoo.weights import Checkpoint
from distqat.sections import ModelSection

Config = TypeVar("Config", bound=PreTrainedConfig)


def configure(
    kind: type[Config], section: ModelSection, sizes: Mapping[str, Any], attention: str = "sdpa"
) -> tuple[Config, Checkpoint | None]:
    """The config of a model, and where its pretrained numbers are, if they are asked for.

    The run's options come first, then the pretrained model's own config, or else `sizes`, then the library's defaults.
    Raises ModelError for an option that the config does not have, or a value that it refuses.
    """
    options = _options(kind, section)
    if not section.pretrained:
        # Special tokens are the tokeniser's business; the library complains of those that the vocabulary lacks.
        plain = {"bos_token_id": None, "eos_token_id": None, **sizes, **options}
        return _make(kind, section.name, plain, attention), None
    checkpoint = Checkpoint(section.pretrained)
    written = checkpoint.config()
    if written.get("model_type") != kind.model_type:
        raise ModelError(
            f"model {section.name} is of the family {kind.model_type}, "
            f"and '{section.pretrained}' of {written.get('model_type')}"
        )
    return _make(kind, section.name, {**written, **options}, attention), checkpoint


def _options(kind: type[PreTrainedConfig], section: ModelSection) -> dict[str, Any]:
    """The run's options by the names that the config has for them."""
    known = {field.name for field in dataclasses.fields(kind)} - _names_of_all()
    other = dict(kind.attribute_map)
    for name in section.options:
        if name not in known and name not in other:
            raise ModelError(f"model {section.name} has no option '{name}'; there are: {', '.join(sorted(known))}")
    return {other.get(name, name): value for name, value in section.options.items()}


def _names_of_all() -> set[str]:
    """Fields of every config, which say nothing of the model's sizes."""
    return {field.name for field in dataclasses.fields(PreTrainedConfig)}


def _make(kind: type[Config], model: str, values: Mapping[str, Any], attention: str) -> Config:
    kept = {name: value for name, value in values.items() if name not in ("model_type", "transformers_version")}
    try:
        made: Config = kind(**{**kept, "attn_implementation": attention})
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        message = " ".join(str(error).split())
        raise ModelError(f"the options of model {model} do not fit: {message}") from None
    return made


class Numbers:
    """The first numbers of a model's blocks: as the library initialises them, and pretrained where there are such.

    `aliases` are other names under which a pretrained tensor may be found, and `new` is what may be missing there.
    """

    def __init__(
        self,
        shell: PreTrainedModel,
        checkpoint: Checkpoint | None,
        aliases: Mapping[str, Sequence[str]] | None = None,
        new: Sequence[str] = (),
    ) -> None:
        self._shell = shell
        self._checkpoint = checkpoint
        self._aliases = aliases or {}
        self._new = new

    def freshen(self, block: nn.Module) -> None:
        """Fresh numbers as the library gives them, drawn from torch's generator."""
        block.apply(self._shell._init_weights)

    def loader(self, origins: Mapping[str, str]) -> Callable[[nn.Module], None] | None:
        """What gives a block of these origins its pretrained numbers, and raises ModelError for tensors that are
        missing or have another shape; None where there are no pretrained ones."""
        return None if self._checkpoint is None else partial(self._load_all, self._checkpoint, origins)

    @torch.no_grad()
    def _load_all(self, checkpoint: Checkpoint, origins: Mapping[str, str], block: nn.Module) -> None:
        for name, tensor in block.state_dict(keep_vars=True).items():
            self._load(tensor, original(name, origins), checkpoint)

    def _load(self, tensor: torch.Tensor, name: str, checkpoint: Checkpoint) -> None:
        found = next((candidate for candidate in self._candidates(name) if checkpoint.has(candidate)), None)
        if found is None:
            if name in self._new:
                return
            raise ModelError(f"pretrained model '{checkpoint.where}' has no tensor '{name}'")
        read = checkpoint.read(found)
        if read.shape != tensor.shape:
            raise ModelError(
                f"pretrained model '{checkpoint.where}': tensor '{found}' is {tuple(read.shape)}, "
                f"and the model has {tuple(tensor.shape)}; leave the option out that changes it"
            )
        tensor.copy_(read)

    def _candidates(self, name: str) -> list[str]:
        """The name as the whole model has it, and as the library's model without a head has it."""
        prefix = f"{self._shell.base_model_prefix}."
        return [found.removeprefix(cut) for found in (name, *self._aliases.get(name, ())) for cut in ("", prefix)]


def original(name: str, origins: Mapping[str, str]) -> str:
    """What the library's own model calls that tensor of a block."""
    for prefix, other in origins.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    raise ModelError(f"no tensor of the library's model stands for '{name}'")
