"""From a run's config to its stages: how the model is cut, what the stages are called, and the own one, built."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from distqat.config import RunConfig
from distqat.errors import ModelError
from distqat.model import zoo
from distqat.model.partition import cut
from distqat.model.precision import compute_type
from distqat.model.quant.plan import quantised
from distqat.model.rates import warmup_fraction
from distqat.model.shapes import DataShape
from distqat.model.stage import CPU, Stage, Training
from distqat.model.task import Task
from distqat.model.zoo.blocks import ModelPlan, slice_of
from distqat.sections import ModelSection


def plan_stages(section: ModelSection, shape: DataShape) -> list[range]:
    """The blocks of each stage. Raises ModelError."""
    return cut(zoo.plan(section, shape).costs, section.stages, section.cuts)


def stage_names(config: RunConfig, shape: DataShape) -> list[str]:
    """`["resnet/0", "resnet/1"]`. Raises ModelError when the model cannot be cut so."""
    ranges = plan_stages(config.model, shape)
    return [f"{config.model.name}/{index}" for index in range(len(ranges))]


def build_stage(
    config: RunConfig,
    shape: DataShape,
    index: int,
    task: Task | None,
    device: torch.device = CPU,
    budget: int | None = None,
) -> Stage:
    """Stage `index` of the run, and nothing else of the model, with the numbers that it has in the uncut model.

    Only the last stage needs the task, and only a run with warm-up its budget, in samples. Raises ModelError.
    """
    plan = zoo.plan(config.model, shape)
    ranges = cut(plan.costs, config.model.stages, config.model.cuts)
    return _build(config, plan, ranges, index, task, device, budget)


def build_whole(
    config: RunConfig, shape: DataShape, task: Task, device: torch.device = CPU, budget: int | None = None
) -> Stage:
    """The uncut model as one stage, whatever the run's cut: the baseline. Raises ModelError."""
    plan = zoo.plan(config.model, shape)
    # It has no siblings, and so nothing to deal out.
    alone = config.model_copy(update={"sync": config.sync.model_copy(update={"fragments": 1})})
    return _build(alone, plan, [range(len(plan.blocks))], 0, task, device, budget)


def _build(
    config: RunConfig,
    plan: ModelPlan,
    ranges: Sequence[range],
    index: int,
    task: Task | None,
    device: torch.device,
    budget: int | None,
) -> Stage:
    precision = config.train.precision
    own = slice_of(quantised(plan, config.quant), ranges, index, compute_type(precision))
    training = Training(
        config.run.seed,
        config.optimizer,
        precision,
        _warmup(config, budget),
        recompute=any(fnmatchcase(own.name, glob) for glob in config.pipeline.recompute),
        fragments=config.sync.fragments,
        step_rate=config.quant.step_rate,
    )
    return Stage(own, training, task, device)


def _warmup(config: RunConfig, budget: int | None) -> float:
    if not config.optimizer.warmup_steps:
        return 0.0
    if budget is None:
        raise ModelError("a warm-up of the learning rate needs the run's budget of samples")
    return warmup_fraction(config.optimizer, config.data.batch, budget)
