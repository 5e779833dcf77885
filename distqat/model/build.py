"""From a run's config to its stages: how the model is cut, what the stages are called, and the own one, built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch

from distqat.config import RunConfig
from distqat.errors import ModelError
from distqat.model import zoo
from distqat.model.partition import cut
from distqat.model.precision import compute_type
from distqat.model.quant.boundary import bounded
from distqat.model.quant.plan import quantised
from distqat.model.shapes import DataShape
from distqat.model.slice import Slice
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
) -> Stage:
    """Stage `index` of the run, and nothing else of the model, with the numbers that it has in the uncut model.

    Only the last stage needs the task. Raises ModelError.
    """
    plan = _plan(config, shape)
    ranges = cut(plan.costs, config.model.stages, config.model.cuts)
    return _build(config, plan, ranges, index, task, device)


def build_whole(config: RunConfig, shape: DataShape, task: Task, device: torch.device = CPU) -> Stage:
    """The uncut model as one stage, whatever the run's cut: the baseline. Raises ModelError.

    Where the run's cut would send learned codes it rounds as well.
    """
    plan = _plan(config, shape)
    # It has no siblings, and so nothing to deal out.
    alone = config.model_copy(update={"sync": config.sync.model_copy(update={"fragments": 1})})
    return _build(alone, plan, [range(len(plan.blocks))], 0, task, device)


def build_uncut(config: RunConfig, shape: DataShape) -> Slice:
    """The uncut model, to be given numbers, for evaluations: in fp32, on the CPU. Raises ModelError.

    Of a pretrained model nothing is read but its config.
    """
    plan = quantised(_plan(config, shape), config.quant)
    plan = replace(plan, blocks=tuple(replace(block, load=None) for block in plan.blocks))
    return Slice(slice_of(plan, [range(len(plan.blocks))], 0), config.run.seed, "fp32", CPU)


def _plan(config: RunConfig, shape: DataShape) -> ModelPlan:
    plan, model = zoo.plan(config.model, shape), config.model
    if not config.wire.can_learn:
        return plan
    return bounded(plan, cut(plan.costs, model.stages, model.cuts), config.wire, config.quant.has_offsets)


def _build(
    config: RunConfig,
    plan: ModelPlan,
    ranges: Sequence[range],
    index: int,
    task: Task | None,
    device: torch.device,
) -> Stage:
    precision = config.train.precision
    own = slice_of(quantised(plan, config.quant), ranges, index, compute_type(precision))
    training = Training(
        config.run.seed,
        config.optimizer,
        precision,
        recompute=any(fnmatchcase(own.name, glob) for glob in config.pipeline.recompute),
        fragments=config.sync.fragments,
        step_rate=config.quant.step_rate,
    )
    stage = Stage(own, training, task, device)
    _expect_room(stage, config.wire.max_message)
    return stage


def _expect_room(stage: Stage, most: int) -> None:
    """A tied tensor travels beside activations in one message; raises ModelError unless it takes at most half of it."""
    if stage.tie.travels and 2 * stage.tie.nbytes > most:
        raise ModelError(
            f"model {stage.plan.model} ties a tensor of {stage.tie.nbytes} bytes, which travels between its ends: "
            f"set wire.max_message to at least {2 * stage.tie.nbytes}, or model.options.tie_word_embeddings to false"
        )
