"""Where a stage ends and sends learned codes: what leaves its last block is rounded by a quantizer of its own.

The hop carries the codes and the step, and what comes of them at the other end is, bit for bit, what stands here. The
uncut model has the same quantizers in the same places. What leaves is rounded always: evaluations before the first
training do it with the step of standard normal values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.model.quant.grid import Channels, Grid
from distqat.model.quant.quantizers import LearnedInputs
from distqat.model.quant.rounding import codes_of, effective, straight_through
from distqat.model.zoo.blocks import HiddenShape, ModelPlan
from distqat.wire.codecs.learned import CodedTensor, Form, channel_axis
from distqat.wire_sections import WireSection


class BoundaryQuantizer(LearnedInputs):
    """From what leaves a stage to rounded values of the same shape and type; keeps the codes for whoever sends them."""

    def __init__(self, form: Form, channels: Channels | None) -> None:
        super().__init__(Grid(form.bits, form.is_signed), channels, form.has_offset)
        self.form = form
        self._coded: CodedTensor | None = None  # Of the values that left last; None when they were taken.

    def forward(self, values: Tensor) -> Tensor:
        """Gradients are those of `rounding.rounded`. Raises ValueError for values that are not finite."""
        if not bool(torch.isfinite(values).all()):
            raise ValueError("what leaves it is NaN or infinite")
        if self.training and not self._begun.ask(self.initialised):
            self._begin(values)
        self._coded = self._code(values)
        exact = self._coded.values()
        if not torch.is_grad_enabled():
            return exact
        # Not `rounded` alone, which knows a negative zero.
        return straight_through(exact, self._rounded(values, values[0].numel()))

    def take(self) -> CodedTensor | None:
        """The codes of the values that left last, once; None if they were taken."""
        taken, self._coded = self._coded, None
        return taken

    @torch.no_grad()
    def _code(self, values: Tensor) -> CodedTensor:
        """With step and offset as they are now, whatever becomes of them."""
        whole = codes_of(values, self.step, self.offset, self.grid, self.channels)
        codes = whole.sub_(self.grid.lowest).to(torch.uint8)
        offset = None if self.offset is None else self.offset.detach().clone()
        return CodedTensor(self.form, codes, effective(self.step).detach(), offset, values.dtype)


def bounded(plan: ModelPlan, ranges: Sequence[range], wire: WireSection, has_offsets: bool) -> ModelPlan:
    """The plan with a quantizer behind each block after which a stage sends learned codes, if it is cut so.

    Raises ModelError where signs carry lengths: to codes of few bits, or of a step that was learned from louder values,
    even the loudest element may be zero, which has no sign.
    """
    blocks = list(plan.blocks)
    for index, own in enumerate(ranges[:-1]):
        codes = wire.learned_of(f"{plan.name}/{index}")
        if codes is not None:
            spec, form = blocks[own.stop - 1], Form.of(codes, has_offsets)
            if spec.output.has_riders:
                raise ModelError(
                    f"wire: stage {plan.name}/{index} sends lengths as signs, which learned codes may lose: they round "
                    "to zero what is small beside the step; let its activations have another codec, such as int8"
                )
            blocks[own.stop - 1] = replace(spec, boundary=form)
    return replace(plan, blocks=tuple(blocks))


def attach(block: nn.Module, form: Form, output: HiddenShape, device: torch.device) -> BoundaryQuantizer:
    """A quantizer of what leaves the block, whose numbers are the block's own.

    It is no module of the block: a block may call whatever modules it has, as `nn.Sequential` does.
    """
    quantizer = BoundaryQuantizer(form, _channels(form, output)).to(device)
    block.register_parameter("boundary_step", quantizer.step)
    if quantizer.offset is not None:
        block.register_parameter("boundary_offset", quantizer.offset)
    block.register_buffer("boundary_initialised", quantizer.initialised)
    return quantizer


def _channels(form: Form, output: HiddenShape) -> Channels | None:
    if not form.is_per_channel:
        return None
    shape = (1, *output.shape)
    axis = channel_axis(shape)
    return Channels(axis, shape[axis])
