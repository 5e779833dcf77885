"""The blocks of one stage: what they hold, and how a microbatch goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distqat.errors import TensorError
from distqat.ids import MicrobatchId
from distqat.model import boundary, rng
from distqat.model.layout import layout_of, running_statistics
from distqat.model.precision import Casts, Overflow, autocast, compute_type, quenched
from distqat.model.quant.boundary import attach
from distqat.model.quant.plan import learned
from distqat.model.ties import Tie
from distqat.model.zoo import blocks as zoo_blocks
from distqat.model.zoo.blocks import StagePlan
from distqat.sections import Precision
from distqat.wire.codecs.learned import CodedTensor


class Slice:
    """Blocks with their numbers, on a device."""

    def __init__(self, plan: StagePlan, seed: int, precision: Precision, device: torch.device) -> None:
        self.plan = plan
        self.seed = seed
        self.precision = precision
        self.device = device
        self.blocks = nn.ModuleList(
            zoo_blocks.build(spec, seed, plan.model, plan.first_block + number).to(device)
            for number, spec in enumerate(plan.blocks)
        )
        # By the number of the block behind which it stands: where a stage ends that sends learned codes.
        self._boundaries = {
            number: attach(self.blocks[number], spec.boundary, spec.output, device)
            for number, spec in enumerate(plan.blocks)
            if spec.boundary is not None
        }
        self.tie = Tie(plan, list(self.blocks), device)
        self.layout = layout_of(plan.first_block, self.blocks)
        self.parameters = list(self.blocks.parameters())
        self.buffers = [buffer for _, buffer in running_statistics(self.blocks)]
        # None where a number that is not finite is a fault and no sign.
        self.overflow = Overflow(len(self.blocks), device) if precision == "fp16" else None
        self._type = compute_type(precision)
        self._casts = Casts(precision, self.blocks)
        self._dropouts = [rng.dropouts(block) for block in self.blocks]

    def enter(self, hidden: Tensor) -> Tensor:
        """The input on the stage's device; after the first stage as a leaf that collects its gradient."""
        placed = hidden.to(self.device)
        if self.plan.index == 0:
            return boundary.canonical(placed.detach())
        return boundary.enter(placed, self._customs(0, is_training=True))

    def run(self, hidden: Tensor, microbatch: MicrobatchId | None) -> Tensor:
        """Through the blocks; a microbatch means training, None evaluation. Raises TensorError."""
        is_training = microbatch is not None
        if self.blocks.training != is_training:
            self.blocks.train(is_training)
            for quantizer in self._boundaries.values():
                quantizer.train(is_training)
        with autocast(self.precision, self.device):
            for number, block in enumerate(self.blocks):
                customs = self._customs(number, is_training)
                try:
                    with self._drawing(number, microbatch):
                        output = self._call(number, block, hidden)
                    hidden = boundary.cross(output, self._type, customs)
                    if number in self._boundaries:
                        hidden = boundary.cross(self._boundaries[number](hidden), self._type, customs)
                except ValueError as error:
                    raise TensorError(f"stage {self.plan.name} cannot compute this microbatch: {error}") from None
        return hidden

    def take_codes(self) -> CodedTensor | None:
        """What left the slice last, as integer codes, once; None where it sends none."""
        quantizer = self._boundaries.get(len(self.blocks) - 1)
        return quantizer.take() if quantizer is not None else None

    def learned(self) -> Iterator[nn.Parameter]:
        """The steps and offsets of all quantizers."""
        return learned([*self.blocks, *self._boundaries.values()])

    def run_again(self, hidden: Tensor, microbatch: MicrobatchId, gradient: Tensor) -> None:
        """Forward as the first time, and backward; running statistics have counted the microbatch already."""
        before = self.copy_buffers()
        try:
            torch.autograd.backward(self.run(hidden, microbatch), gradient)
        finally:
            self.put_buffers(before)

    def overflowed(self) -> list[int]:
        """Numbers of the blocks that met a number beyond fp16 in this step; waits for the device."""
        return self.overflow.blocks() if self.overflow is not None else []

    def held(self) -> list[Tensor]:
        """All tensors that are there whether microbatches wait or not."""
        return [*self.parameters, *self.blocks.buffers(), *self._casts.held(), *self.tie.held()]

    def forget_casts(self, blocks: Iterable[int]) -> None:
        """The parameters of these blocks change."""
        for number in blocks:
            self._casts.forget(number)

    def end_step(self) -> None:
        """The parameters may have changed, and overflows were those of this step."""
        self.tie.end_step()
        self.forget_casts(range(len(self.blocks)))
        if self.overflow is not None:
            self.overflow.clear()

    def copy_buffers(self) -> list[Tensor]:
        """The running statistics as they are now."""
        return [buffer.clone() for buffer in self.buffers]

    def put_buffers(self, values: Sequence[Tensor]) -> None:
        """Take back running statistics."""
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)

    def mend_buffers(self, values: Sequence[Tensor]) -> None:
        """Take back those running statistics that are not finite any more."""
        for buffer, value in zip(self.buffers, values, strict=True):
            if not bool(torch.isfinite(buffer).all()):
                buffer.copy_(value)

    def _call(self, number: int, block: nn.Module, hidden: Tensor) -> Tensor:
        casts = self._casts.of(number)
        output: Tensor = functional_call(block, casts, (hidden,), tie_weights=False) if casts else block(hidden)
        return output

    def _drawing(self, number: int, microbatch: MicrobatchId | None) -> AbstractContextManager[None]:
        """Within, the block draws what it draws for that microbatch, wherever and whenever it is computed."""
        if microbatch is None:
            return nullcontext()
        path = ("dropout", microbatch.step, microbatch.index, self.plan.first_block + number)
        if self.plan.blocks[number].is_foreign:
            return rng.borrowed(self.device, rng.derive(self.seed, *path))
        if self._dropouts[number]:
            rng.seed_dropouts(self._dropouts[number], self.seed, *path)
        return nullcontext()

    def _customs(self, number: int, is_training: bool) -> Callable[[Tensor], Tensor] | None:
        if self.overflow is None:
            return None
        return partial(self.overflow.note, number) if is_training else quenched
