"""From a run's config to its stages: how the model is cut, what the stages are called, and the own one, built."""

from __future__ import annotations

import torch

from distqat.config import ModelSection, RunConfig
from distqat.model import zoo
from distqat.model.partition import cut
from distqat.model.shapes import DataShape
from distqat.model.stage import CPU, Stage, Task
from distqat.model.zoo.blocks import slice_of


def plan_stages(section: ModelSection, shape: DataShape) -> list[range]:
    """The blocks of each stage. Raises ModelError."""
    return cut(zoo.plan(section, shape).costs, section.stages, section.cuts)


def stage_names(config: RunConfig, shape: DataShape) -> list[str]:
    """`["resnet/0", "resnet/1"]`. Raises ModelError when the model cannot be cut so."""
    ranges = plan_stages(config.model, shape)
    return [f"{config.model.name}/{index}" for index in range(len(ranges))]


def build_stage(
    config: RunConfig, shape: DataShape, index: int, task: Task | None, device: torch.device = CPU
) -> Stage:
    """Stage `index` of the run, and nothing else of the model, with the numbers that it has in the uncut model.

    Only the last stage needs the task. Raises ModelError.
    """
    plan = zoo.plan(config.model, shape)
    ranges = cut(plan.costs, config.model.stages, config.model.cuts)
    return Stage(slice_of(plan, ranges, index), config.run.seed, config.optimizer, task, device)


def build_whole(config: RunConfig, shape: DataShape, task: Task, device: torch.device = CPU) -> Stage:
    """The uncut model as one stage, whatever the run's cut: the baseline. Raises ModelError."""
    plan = zoo.plan(config.model, shape)
    return Stage(slice_of(plan, [range(len(plan.blocks))], 0), config.run.seed, config.optimizer, task, device)
