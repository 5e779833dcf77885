"""A model as a `torch.export` program: what it computes in evaluations, for whoever runs it without distqat.

Its outputs are, bit for bit, those of the model that was trained, evaluated in fp32 by the same version of torch on the
same kind of machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.model.quant.grid import Channels, Grid
from distqat.model.quant.rounding import codes_of, effective
from distqat.model.zoo.blocks import BlockSpec, HiddenShape
from distqat.wire.codecs.learned import CodedTensor, Form, channel_axis

NEEDS = (2, 6)
"""The first version of torch whose programs are written here."""

TRACED_SAMPLES = 3
"""Of the batch that goes through the model while it is traced; torch takes none or one for constants."""


@dataclass(frozen=True)
class Graph:
    """A program that was written."""

    samples: int | None
    """It takes batches of so many samples only; None: of any number."""


class Uncut(nn.Module):
    """The blocks one behind the other; between two of them the hidden tensor is fp32 and lies in row-major order."""

    def __init__(self, blocks: nn.ModuleList, specs: Sequence[BlockSpec]) -> None:
        super().__init__()
        self.blocks = blocks
        # Behind which blocks a stage sends learned codes, and what these are.
        self._forms = {number: spec.boundary for number, spec in enumerate(specs) if spec.boundary is not None}

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for number, block in enumerate(self.blocks):
            hidden = block(hidden).to(torch.float32).clone(memory_format=torch.contiguous_format)
            if number in self._forms:
                hidden = _as_sent(hidden, block, self._forms[number])
        return hidden


def _as_sent(hidden: Tensor, block: nn.Module, form: Form) -> Tensor:
    """What comes of it at the other end of a hop that carries learned codes."""
    step, offset = block.get_parameter("boundary_step"), None
    if form.has_offset:
        offset = block.get_parameter("boundary_offset")
    axis = channel_axis(tuple(hidden.shape))
    channels = Channels(axis, hidden.shape[axis]) if form.is_per_channel else None
    codes = codes_of(hidden, step, offset, Grid(form.bits, form.is_signed), channels)
    return CodedTensor(form, codes.sub_(form.lowest).to(torch.uint8), effective(step), offset, hidden.dtype).values()


def example(shape: HiddenShape, samples: int, seed: int = 1) -> Tensor:
    """Inputs for a model: drawn, of that shape."""
    numbers = torch.Generator().manual_seed(seed)
    if shape.below is not None:
        return torch.randint(shape.below, (samples, *shape.shape), generator=numbers, dtype=shape.dtype)
    return torch.randn((samples, *shape.shape), generator=numbers).to(shape.dtype)


def check_version(version: str) -> None:
    """Raises ModelError for a torch that is too old."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < NEEDS:
        raise ModelError(f"torch is {version}, and programs are written by {NEEDS[0]}.{NEEDS[1]} or later")


def write(model: Uncut, inputs: HiddenShape, checks: Mapping[int, Tensor], path: Path) -> Graph:
    """Trace the model and write it, for batches of any size, or of 1 sample if the model does not allow that.

    `checks` has, for some numbers of samples, the outputs for `example` of so many: the program must give them bit for
    bit. Raises ModelError, with the reason, when torch cannot take the model or write it, or the program gives other
    numbers; then a part of the file may be there.
    """
    check_version(torch.__version__)
    model.eval()
    try:
        program, graph = _traced(model, inputs, TRACED_SAMPLES), Graph(None)
    except ModelError:
        program, graph = _traced(model, inputs, 1), Graph(1)
    with _faults("run the program that it makes of this model"):
        run = program.module()
        same = all(
            _is_equal(run, example(inputs, samples), expected)
            for samples, expected in checks.items()
            if graph.samples in (None, samples)
        )
    if not same:
        raise ModelError("the program that torch.export makes of this model gives other outputs than the model")
    with _faults("write the program that it makes of this model"):
        torch.export.save(program, path)
    return graph


def _traced(model: Uncut, inputs: HiddenShape, samples: int) -> torch.export.ExportedProgram:
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if samples > 1 else None
    with warnings.catch_warnings(), _faults("take this model"):
        warnings.simplefilter("ignore")
        return torch.export.export(model, (example(inputs, samples),), dynamic_shapes=dynamic)


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """Torch raises errors of many kinds; whichever it is, it becomes a ModelError: the model is written without a
    program."""
    try:
        yield
    except Exception as error:
        raise ModelError(f"torch.export cannot {what}: {_first_line(error)}") from error


def _is_equal(run: nn.Module, inputs: Tensor, expected: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(run(inputs), expected)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
