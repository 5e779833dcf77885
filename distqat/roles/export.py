"""The model of a run out of its checkpoints, as files that others read; no daemon is asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distqat.averaging.spans import Shape
from distqat.config import RunConfig
from distqat.data.sources import source_shape
from distqat.errors import ModelError, StateError
from distqat.model.build import build_uncut, plan_stages
from distqat.model.export import graph, values
from distqat.model.export.graph import Graph, Uncut
from distqat.model.export.tensors import name_of, named, unite
from distqat.model.export.values import StageValues
from distqat.model.quant.deploy import deploy
from distqat.model.slice import Slice
from distqat.roles.checkpoint import files
from distqat.roles.checkpoint.collect import Moment, collect
from distqat.roles.checkpoint.saver import OUTER, state_of

FORMAT = 1
TENSORS, PROGRAM, FACTS = "model.safetensors", "model.pt2", "export.json"
FILES = (TENSORS, PROGRAM, FACTS)
"""The files of an export; the facts of the others come last."""

SCRATCH = ".distqat-export-"
"""What the folder of an export under way is called, then its process."""

CHECKED_SAMPLES = (1, 2)
"""Of the batches on which the program is compared with the model."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    moment: Moment
    """Of the run."""
    num_tensors: int
    layers: Mapping[str, Mapping[str, Any]]
    """Numbers of each quantised layer, by its name."""
    graph: Graph | None
    """None: no program was written."""
    fault: str
    """Why not; empty if it was."""
    sizes: Mapping[str, int]
    """Bytes of each file."""


def export(roots: Sequence[Path], out: Path, config: RunConfig | None = None, with_graph: bool = True) -> Exported:
    """Write the model of a run, as its newest checkpoints below these folders have it, into a folder.

    Which run it is says the config; None: the checkpoints say it. Raises StateError for checkpoints that are missing or
    cannot be read, or if the folder cannot be written to; ModelError and DataError if the model cannot be built.
    """
    moment = collect(roots, config)
    whole = _filled(moment)
    inputs, specs = whole.plan.inputs, whole.plan.blocks
    checks = {samples: _evaluate(whole, graph.example(inputs, samples)) for samples in CHECKED_SAMPLES}
    unite(whole.blocks, specs)
    deployed = deploy(whole.blocks)
    tensors = named(whole.blocks, specs)
    layers = {name_of(path, specs): layer.facts() for path, layer in deployed.items()}
    try:
        with _files(out) as scratch:
            data = safetensors.torch.save(tensors, {"format": "pt", "distqat": json.dumps(layers)})
            scratch[TENSORS].write_bytes(data)
            made, fault = None, "not asked for"
            if with_graph:
                made, fault = _graph(Uncut(whole.blocks, specs), whole, checks, scratch[PROGRAM])
            facts = _facts(moment, whole, layers) | {"graph": _graph_facts(made, fault)}
            scratch[FACTS].write_text(json.dumps(facts, indent=1))
        sizes = {name: (out / name).stat().st_size for name in FILES if (out / name).exists()}
    except OSError as error:
        raise StateError(f"{(error.strerror or str(error)).lower()} ({out})") from None
    return Exported(moment, len(tensors), layers, made, fault, sizes)


def _filled(moment: Moment) -> Slice:
    """The uncut model with the numbers of these checkpoints."""
    config = moment.config
    shape = source_shape(config).data
    whole = build_uncut(config, shape)
    for index, own in enumerate(plan_stages(config.model, shape)):
        stage = values.stage_values(whole, f"{config.model.name}/{index}", own, config.sync.fragments)
        values.put(whole, stage, _anchors(moment, index, stage))
    whole.forget_casts(range(len(whole.blocks)))
    return whole


def _anchors(moment: Moment, index: int, stage: StageValues) -> list[Tensor]:
    """What is committed of a stage, by fragments. Raises StateError unless every number is as the checkpoint says."""
    manifest, groups = files.read(moment.folders[index])
    shapes = tuple(Shape(fragment.num_parameters, fragment.num_elements) for fragment in stage.fragments)
    state = state_of(groups.get(OUTER, {}), manifest.checkpoint, shapes)
    return [part.anchor for part in state.parts]


def _evaluate(whole: Slice, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return whole.run(whole.enter(inputs), None)


@contextmanager
def _files(out: Path) -> Iterator[Mapping[str, Path]]:
    """Where to write each file of the export; at the end those that are there take the place of an earlier export's.

    Until then that one stays as it is. If just the end is interrupted the facts are missing, and no graph lies beside
    weights of another moment. Each export has a folder of its own for what is not whole yet; one that was killed leaves
    it behind, and the next one takes it away.
    """
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(f"{SCRATCH}*"):
        if not _is_running(left):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-", dir=out) as folder:
        scratch = {name: Path(folder) / name for name in FILES}
        yield scratch
        for name in (FACTS, PROGRAM):
            (out / name).unlink(missing_ok=True)
        for name, path in scratch.items():
            if path.exists():
                os.replace(path, out / name)


def _is_running(folder: Path) -> bool:
    """Whether the export that made this scratch folder may still be at work."""
    number = folder.name.removeprefix(SCRATCH).split("-")[0]
    try:
        os.kill(int(number), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(number) != os.getpid()


def _graph(model: Uncut, whole: Slice, checks: Mapping[int, Tensor], path: Path) -> tuple[Graph | None, str]:
    """Written, or why it was not."""
    try:
        return graph.write(model, whole.plan.inputs, checks, path), ""
    except ModelError as error:
        # A part of it may be there.
        path.unlink(missing_ok=True)
        return None, error.reason


def _facts(moment: Moment, whole: Slice, layers: Mapping[str, Any]) -> dict[str, Any]:
    plan, config = whole.plan, moment.config
    return {
        "format": FORMAT,
        "run": {"name": moment.run.name, "digest": moment.run.digest},
        "rounds": list(moment.rounds),
        "same_moment": moment.is_exact,
        "model": config.model.model_dump(mode="json"),
        "quant": config.quant.model_dump(mode="json", by_alias=True),
        "inputs": {"shape": list(plan.inputs.shape), "type": str(plan.inputs.dtype).removeprefix("torch.")},
        "outputs": {"shape": list(plan.outputs.shape), "type": "float32"},
        "blocks": [spec.name for spec in plan.blocks],
        "layers": layers,
        "torch": torch.__version__,
    }


def _graph_facts(made: Graph | None, fault: str) -> dict[str, Any]:
    return {"file": None, "why": fault} if made is None else {"file": PROGRAM, "samples": made.samples}
