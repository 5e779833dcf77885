"""A run that has trained a little, and the checkpoints of its stages, without a swarm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distqat.averaging.outer import OuterState, Part
from distqat.config import RunConfig
from distqat.data.sources import source_shape
from distqat.ids import MicrobatchId, PipelineId, StageIndex, StepRef
from distqat.model.stage import Stage
from distqat.roles.checkpoint import files
from distqat.roles.checkpoint.files import CONFIG, Manifest
from distqat.roles.checkpoint.saver import OUTER, checkpoint_of, tensors_of
from tests.model import helpers

QUANT: dict[str, Any] = {
    "method": "lsq",
    "weights": {"bits": 4, "per": "channel"},
    "activations": {"bits": 4},
    "rules": [{"match": "head*", "weights": {"bits": 8}, "activations": {"bits": 8}}],
}


def run(
    model: str,
    stages: int = 2,
    quant: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **sections: Any,
) -> RunConfig:
    """A run of a small model on data that the machine has."""
    shape, usual = helpers.MODELS.get(model, (helpers.TOKENS, {}))
    data = {"source": "digits"} if shape.kind == "image" else {"source": "pydocs", "sequence": shape.inputs[0]}
    section = {"name": model, "stages": stages, "options": usual if options is None else options}
    return RunConfig.model_validate({"model": section, "data": data, "quant": quant or {}, **sections})


def trained(config: RunConfig, steps: int = 2) -> list[Stage]:
    """Its stages after some steps."""
    shape = source_shape(config).data
    chain = helpers.chain(config, shape)
    helpers.train(chain, shape, steps)
    return chain


def evaluated(chain: Sequence[Stage], inputs: Tensor) -> Tensor:
    """What the last of these stages gives."""
    lender, borrower = chain[0].tie, chain[-1].tie
    if lender.travels:
        borrower.borrow(helpers.wire(lender.lend()))
    hidden = inputs
    for stage in chain:
        hidden = helpers.wire(stage.forward(MicrobatchId(99, 0), hidden, train=False))
    return hidden


def write(root: Path, config: RunConfig, chain: Sequence[Stage], number: int = 4, step: int = 40) -> list[Path]:
    """Their checkpoints after so many rounds, at that step of one pipeline; the folder of each stage."""
    folders = []
    for stage in chain:
        parts = []
        for index, fragment in enumerate(stage.fragments):
            parts.append(Part.of(stage.gather([index]), torch.zeros(fragment.num_parameters)))
        state = OuterState.of(parts, number, (), (StepRef(PipelineId("p1-ab"), step),))
        checkpoint = checkpoint_of(StageIndex(stage.index), state, None, None)
        manifest = Manifest(config.id, "a" * 40, checkpoint, {CONFIG: config.canonical()})
        folders.append(files.write(root, manifest, {OUTER: tensors_of(state)}))
    return folders
