"""What is trained in a bench: a model, its sizes, and random batches of one shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distqat.config import RunConfig
from distqat.data.tasks import find_task
from distqat.model import zoo
from distqat.model.build import build_stage, build_whole, plan_stages
from distqat.model.shapes import DataShape
from distqat.model.stage import Stage
from distqat.sections import CodecName, DataSection, ModelSection, RunSection
from distqat.wire import codecs
from distqat.wire_sections import WireSection

Tensors = dict[str, torch.Tensor]

TASKS = {"image": "cv", "tokens": "llm"}


@dataclass(frozen=True)
class Recipe:
    """A model and its batches."""

    model: str
    shape: DataShape
    samples: int
    """In a batch."""
    options: tuple[tuple[str, int], ...] = ()
    """Sizes other than the model's defaults."""

    def __str__(self) -> str:
        sizes = "".join(f" {name} {value}" for name, value in self.options)
        shape = "x".join(map(str, self.shape.inputs))
        return f"{self.model}{sizes}, {self.samples} x {shape}, {self.shape.classes} classes"

    def config(self, stages: int, codec: CodecName = "none") -> RunConfig:
        """The run of it; activations and their gradients travel with the same codec."""
        return RunConfig(
            run=RunSection(name="bench", seed=7),
            model=ModelSection(name=self.model, stages=stages, options=dict(self.options)),
            data=DataSection(),
            wire=WireSection(activations=codec, gradients=codec),
        )

    def stage(self, index: int, stages: int) -> Stage:
        """One stage of it."""
        task = find_task(TASKS[self.shape.kind]) if index == stages - 1 else None
        return build_stage(self.config(stages), self.shape, index, task)

    def whole(self) -> Stage:
        """All of it in one stage."""
        return build_whole(self.config(1), self.shape, find_task(TASKS[self.shape.kind]))

    def blocks(self, stages: int) -> list[tuple[int, int]]:
        """Where each stage begins and ends among the model's blocks."""
        ranges = plan_stages(self.config(stages).model, self.shape)
        return [(blocks.start, blocks.stop) for blocks in ranges]

    def batch(self) -> Tensors:
        """Random samples, always the same."""
        numbers = torch.Generator().manual_seed(1)
        sizes = (self.samples, *self.shape.inputs)
        if self.shape.kind == "image":
            inputs = torch.randn(sizes, generator=numbers)
            labels = torch.randint(self.shape.classes, (self.samples,), generator=numbers)
        else:
            inputs = torch.randint(self.shape.classes, sizes, generator=numbers)
            labels = torch.randint(self.shape.classes, sizes, generator=numbers)
        return {"inputs": inputs, "labels": labels}

    def described(self) -> Mapping[str, Any]:
        """For a peer, which imports nothing of ours."""
        return {
            "model": self.model,
            "inputs": self.shape.inputs,
            "classes": self.shape.classes,
            "samples": self.samples,
            "options": dict(self.options),
        }


GPT = Recipe("gpt", DataShape("tokens", (128,), 4096), 24, (("width", 256), ("layers", 3)))
"""A small language model in realistic proportions: head and layers share the work about as in distilgpt2, and the
vocabulary is 16 times the width (there 65). The batch suits hivemind, which hangs where a call of less than 2 MiB is
answered with more than 4 MiB: activations have to be between these."""

BYTE_GPT = Recipe("gpt", DataShape("tokens", (128,), 256), 8, (("width", 256), ("layers", 4)))
"""On bytes: scores are as small as activations, which is as good as it gets for a client that computes the loss."""

RESNET = Recipe("resnet", DataShape("image", (1, 8, 8), 10), 256)
"""The hard case: 9 ms of compute for a microbatch whose activations take 131 KB."""

RECIPES = (GPT, BYTE_GPT, RESNET)


def least_bytes(recipe: Recipe, stages: int, codec: CodecName) -> float:
    """Bytes that a sample needs on all hops: two encoded tensors at a boundary; inputs and targets as they are."""
    batch = recipe.batch()
    inputs, labels = batch["inputs"].nbytes, batch["labels"].nbytes
    blocks = zoo.plan(recipe.config(stages).model, recipe.shape).blocks
    hidden = 0
    for _, end in recipe.blocks(stages)[:-1]:
        elements = math.prod(blocks[end - 1].output.shape) * recipe.samples
        hidden += 2 * codecs.find(codec).size(elements, torch.float32)
    return (inputs + stages * labels + hidden) / recipe.samples
