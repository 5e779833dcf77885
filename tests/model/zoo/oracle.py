"""The uncut model of `transformers`, trained by plain torch: what every cut of ours must equal, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from distqat.config import RunConfig
from distqat.model import rng, zoo
from distqat.model.shapes import DataShape
from distqat.model.stage import Stage
from distqat.model.task import Task
from distqat.model.zoo.families.library import original
from distqat.model.zoo.families.wav2vec2 import SILENT
from tests import dwarfs
from tests.model import helpers

RAND = torch.rand

CROSS_ENTROPY = helpers.CrossEntropy()
SEED = 11
LEARNING_RATE = 1e-2

TOKENS = DataShape("tokens", (12,), 40)


SOUND = DataShape("audio", (600,), 12)


class Ctc:
    """Connectionist temporal classification over all frames; targets are padded with -100."""

    name = "ctc"

    def loss(self, output: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        labels = targets["labels"]
        frames = torch.full((len(output),), output.shape[1])
        scores = F.log_softmax(output, -1).transpose(0, 1)
        total = F.ctc_loss(scores, labels.clamp(min=0), frames, (labels >= 0).sum(1), reduction="none").sum()
        return total, {"loss": float(total.detach()), "samples": float(len(output))}


def batch(shape: DataShape, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels; sound ends with zeros, and half of the samples are shorter than the others."""
    if shape.kind != "audio":
        return helpers.batch(shape, seed)
    numbers = torch.Generator().manual_seed(seed)
    samples = helpers.SAMPLES * helpers.MICROBATCHES
    inputs = torch.randn((samples, *shape.inputs), generator=numbers)
    inputs[::2, 400:] = 0.0
    labels = torch.randint(1, shape.classes, (samples, 3), generator=numbers)
    labels[1::3, 2] = -100
    return inputs, labels


def masked_scores(model: Any, inputs: Tensor) -> Tensor:
    """The uncut model's scores, told what is padding; blank there."""
    mask = (torch.arange(inputs.shape[1]) < 400) | (inputs[:, 400:] != 0).any(1, keepdim=True)
    scores: Tensor = model(inputs, attention_mask=mask.long()).logits
    lengths = model._get_feat_extract_output_lengths(mask.sum(1))
    silence = torch.tensor([0.0] + [SILENT] * (scores.shape[-1] - 1))
    return torch.where((torch.arange(scores.shape[1]) < lengths.unsqueeze(1)).unsqueeze(-1), scores, silence)


@dataclass(frozen=True)
class Family:
    """A tiny model of a family, and how the library's uncut one is made and taken apart."""

    name: str
    """In the zoo."""
    options: Mapping[str, Any]
    config: type[PreTrainedConfig]
    whole: type[PreTrainedModel]
    begins: Callable[[Any], Mapping[int, nn.Module]]
    """The module with which each block but the first begins, by the block's index."""
    shape: DataShape = TOKENS
    task: Task = CROSS_ENTROPY
    call: Callable[[Any, Tensor], Tensor] = lambda model, inputs: model(inputs).logits
    """The uncut model's output."""
    first_layer: int | None = None
    """The block of the first layer that may be dropped; None where none may."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What the library's config has to be told besides."""


SPEECH = {
    **dwarfs.SPEECH,
    "num_hidden_layers": 3,
    "mask_time_prob": 0.3,
    "mask_time_length": 4,
    "mask_feature_prob": 0.2,
    "mask_feature_length": 4,
    "layerdrop": 0.3,
    "final_dropout": 0.1,
}

FAMILIES = {
    "gpt2": Family(
        "distilgpt2",
        {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 20, "tie_word_embeddings": False},
        GPT2Config,
        GPT2LMHeadModel,
        lambda model: dict(enumerate([*model.transformer.h, model.transformer.ln_f], 1)),
    ),
    "gpt-neo": Family(
        "gpt-neo-125m",
        {
            "num_layers": 3,
            "num_heads": 2,
            "hidden_size": 16,
            "max_position_embeddings": 20,
            "window_size": 4,
            "embed_dropout": 0.1,
            "resid_dropout": 0.1,
            "attention_dropout": 0.1,
            "tie_word_embeddings": False,
        },
        GPTNeoConfig,
        GPTNeoForCausalLM,
        lambda model: dict(enumerate([*model.transformer.h, model.transformer.ln_f], 1)),
        more={"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    ),
    "llama": Family(
        "llama",
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "max_position_embeddings": 32,
            "attention_dropout": 0.1,
        },
        LlamaConfig,
        LlamaForCausalLM,
        lambda model: dict(enumerate([*model.model.layers, model.model.norm], 1)),
    ),
    "wav2vec2": Family(
        "wav2vec2",
        SPEECH,
        Wav2Vec2Config,
        Wav2Vec2ForCTC,
        lambda model: {1: model.wav2vec2.feature_projection, 2: model.wav2vec2.encoder, 6: model.dropout},
        SOUND,
        Ctc(),
        first_layer=3,
    ),
    "wav2vec2-masked": Family(
        "wav2vec2-large-lv60",
        {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
        Wav2Vec2Config,
        Wav2Vec2ForCTC,
        lambda model: {1: model.wav2vec2.feature_projection, 2: model.wav2vec2.encoder, 6: model.dropout},
        SOUND,
        Ctc(),
        masked_scores,
        first_layer=3,
    ),
}


def run(
    family: Family,
    stages: int,
    pretrained: str = "",
    options: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    **optimizer: Any,
) -> RunConfig:
    """A run of a family's tiny model, or of a pretrained one."""
    chosen = dict(family.options if options is None else options)
    model = {"name": family.name, "stages": stages, "options": chosen, "pretrained": pretrained}
    return RunConfig.model_validate(
        {
            "model": model,
            "optimizer": {"learning_rate": LEARNING_RATE, **optimizer},
            "run": {"seed": SEED},
            "train": {"precision": precision},
            "pipeline": {"recompute": [f"{family.name}/0"] if stages == 3 else []},
        }
    )


def whole(family: Family, **options: Any) -> PreTrainedModel:
    """The library's own model of the same config, with numbers of its own."""
    # Training keeps no keys and values for later tokens; a cache gives attention other strides, and so other rounding.
    special = {"bos_token_id": None, "eos_token_id": None, "vocab_size": family.shape.classes, "use_cache": False}
    with rng.borrowed(torch.device("cpu"), 5):
        return family.whole(family.config(**{**special, **family.options, **family.more, **options}))


def save(model: PreTrainedModel, where: Path, shard: str = "1GB") -> str:
    """As `save_pretrained` writes it; returns the directory's name."""
    model.save_pretrained(where, max_shard_size=shard)
    return str(where)


def names(config: RunConfig, shape: DataShape, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of ours by the names that the library has for them."""
    specs = zoo.plan(config.model, shape).blocks
    renamed = {}
    for name, tensor in found.items():
        _, block, rest = name.split(".", 2)
        renamed[original(rest, specs[int(block)].origins)] = tensor
    return renamed


def gradients(chain: Sequence[Stage]) -> dict[str, Tensor]:
    """What is pending in all stages, by our names."""
    found = {}
    for stage in chain:
        stage.tie.unite()
        slots = [slot for slot in stage.layout if slot.is_parameter]
        for slot, parameter in zip(slots, stage.blocks.parameters(), strict=True):
            found[slot.name] = torch.zeros(slot.shape) if parameter.grad is None else parameter.grad.clone()
    return found


class Oracle:
    """Plain training of the library's model; each of its parts draws what the block that stands for it draws."""

    def __init__(self, family: Family, model: PreTrainedModel) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01, fused=True)
        self.step_index, self.microbatch = 1, 0
        self.family = family
        self.layer = 0  # The block of the next layer that may be dropped.
        for index, module in ({0: model} | dict(family.begins(model))).items():
            module.register_forward_pre_hook(lambda *_, index=index: self._seed(index))

    def compute(self, inputs: Tensor, labels: Tensor, number: int = helpers.MICROBATCHES) -> float:
        """Forwards and backwards of a step."""
        total = 0.0
        with rng.borrowed(torch.device("cpu"), 0), mock.patch("torch.rand", self._rand):
            for self.microbatch, (part, target) in enumerate(helpers.microbatches(inputs, labels, number)):
                self.layer = self.family.first_layer or 0
                loss, sums = self.family.task.loss(self.family.call(self.model, part), {"labels": target})
                torch.autograd.backward(loss / len(inputs))
                total += sums["loss"]
        return total / len(inputs)

    def gradients(self) -> dict[str, Tensor]:
        """Of the step that is computed."""
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.model.named_parameters()
        }

    def apply(self) -> None:
        """The step."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_index += 1

    def _rand(self, *arguments: Any, **named: Any) -> Tensor:
        """What the library asks before each layer that it may drop."""
        self._seed(self.layer)
        self.layer += 1
        return RAND(*arguments, **named)

    def _seed(self, block: int) -> None:
        seed = rng.derive(SEED, "dropout", self.step_index, self.microbatch, block)
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
