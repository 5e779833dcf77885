"""What a model of the zoo is: a list of blocks, each of which can be built alone.

Between two blocks passes one hidden tensor, so a model can be cut in front of any block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from distqat.errors import ModelError
from distqat.model import rng
from distqat.wire.codecs.learned import Form


@dataclass(frozen=True)
class HiddenShape:
    """What passes between two blocks, for one sample."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    below: int | None = None
    """Integers only: every element is less than this, and not negative."""
    has_riders: bool = False
    """Some elements say what they say by their sign. Every codec keeps it but learned codes, which are refused here."""

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {('batch', *self.shape)}".replace("'", "")


@dataclass(frozen=True)
class BlockSpec:
    """One block, not built yet."""

    name: str
    make: Callable[[], nn.Module]
    """Builds the module, with whatever numbers; `build` gives it its own."""
    cost: float
    """Estimated floating-point operations of a forward pass of one sample."""
    output: HiddenShape
    is_foreign: bool = False
    """Made of modules that know nothing of distqat: what they draw, they draw from the process's generators, which are
    seeded for them. Without `initialise`, their first numbers are those of their constructors."""
    initialise: Callable[[nn.Module], None] | None = None
    """Gives a foreign module, built without numbers, fresh ones."""
    load: Callable[[nn.Module], None] | None = None
    """Puts pretrained numbers in their place; raises ModelError."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of the names of its tensors, and what stands for them in the model of the library that it is from."""
    finish: Callable[[nn.Module], None] | None = None
    """Changes the module in place once it has its first numbers, from these alone; see `model.quant`."""
    boundary: Form | None = None
    """How what leaves the block is rounded, where a cut behind it sends learned codes; see `model.quant.boundary`."""
    lends: str | None = None
    """In a model's first block: the name of its parameter that the last block computes with too; see `model.ties`."""


@dataclass(frozen=True)
class ModelPlan:
    """A whole model, not built: what its blocks are and what enters the first one."""

    name: str
    inputs: HiddenShape
    blocks: tuple[BlockSpec, ...]

    @property
    def is_tied(self) -> bool:
        """Whether the last block computes with a parameter of the first one."""
        return self.blocks[0].lends is not None

    @property
    def costs(self) -> list[float]:
        """The estimated cost of each block."""
        return [block.cost for block in self.blocks]


@dataclass(frozen=True)
class StagePlan:
    """A stage's slice of a model, not built."""

    model: str
    index: int
    num_stages: int
    first_block: int
    inputs: HiddenShape
    blocks: tuple[BlockSpec, ...]
    is_tied: bool = False
    """Whether the model's last block computes with a parameter of its first one."""

    @property
    def name(self) -> str:
        """The stage's name, such as `resnet/0`."""
        return f"{self.model}/{self.index}"

    @property
    def is_last(self) -> bool:
        """Whether the model ends in it."""
        return self.index == self.num_stages - 1

    @property
    def outputs(self) -> HiddenShape:
        """What leaves the stage, for one sample."""
        return self.blocks[-1].output


def slice_of(plan: ModelPlan, ranges: Sequence[range], index: int, dtype: torch.dtype = torch.float32) -> StagePlan:
    """The slice of one stage; blocks hand tensors of that type on. Raises ModelError when there is no such stage."""
    if not 0 <= index < len(ranges):
        raise ModelError(f"there is no stage {index}; the model is cut into {len(ranges)} (0 to {len(ranges) - 1})")
    own = ranges[index]
    blocks = [replace(block, output=replace(block.output, dtype=dtype)) for block in plan.blocks]
    inputs = plan.inputs if own.start == 0 else blocks[own.start - 1].output
    mine = tuple(blocks[own.start : own.stop])
    return StagePlan(plan.name, index, len(ranges), own.start, inputs, mine, plan.is_tied)


def build(spec: BlockSpec, seed: int, model: str, index: int) -> nn.Module:
    """Block `index` of the uncut model, on the CPU, with numbers that depend on the arguments alone.

    Raises ModelError when a part of it gets none.
    """
    block = _with_numbers(spec, seed, model, index)
    if spec.finish is not None:
        spec.finish(block)
    return block


def _with_numbers(spec: BlockSpec, seed: int, model: str, index: int) -> nn.Module:
    if spec.is_foreign:
        with rng.borrowed(torch.device("cpu"), rng.derive(seed, "initial", model, index)):
            return _foreign(spec, f"{model} block {index}")
    with torch.device("meta"):
        block = spec.make()
    block = block.to_empty(device="cpu")
    numbers = rng.generator(seed, "initial", model, index)
    for name, module in block.named_modules():
        _initialise(module, f"{model} block {index} {name}", numbers)
    return block


@torch.no_grad()
def _foreign(spec: BlockSpec, where: str) -> nn.Module:
    """A block of foreign modules. One that a rule has forgotten has NaN, and is refused."""
    if spec.initialise is None:
        return spec.make()
    with torch.device("meta"):
        block = spec.make()
    block = block.to_empty(device="cpu")
    for parameter in block.parameters():
        parameter.fill_(torch.nan)
    spec.initialise(block)
    if spec.load is not None:
        spec.load(block)
    for name, parameter in block.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{where}: {name} has no first numbers, or some that are not finite")
    return block


@torch.no_grad()
def _initialise(module: nn.Module, where: str, numbers: torch.Generator) -> None:
    """Fresh numbers for what the module itself holds. `initial_std` on a module overrides the usual spread."""
    if isinstance(module, nn.Linear):
        std = getattr(module, "initial_std", None)
        nn.init.normal_(module.weight, std=std or module.in_features**-0.5, generator=numbers)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=numbers)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02, generator=numbers)
    elif isinstance(module, nn.LayerNorm):
        module.weight.fill_(1.0)
        module.bias.zero_()
    elif isinstance(module, BatchNorm):
        module.reset()
    elif any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
        raise ModelError(f"{where}: no rule for the initial numbers of a {type(module).__name__}")


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of images with a fixed momentum, so that its only state is the running mean and variance."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.1)
        self.num_batches_tracked = None

    @torch.no_grad()
    def reset(self) -> None:
        """Identity scale and shift; running statistics of a standard normal."""
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.zero_()
        self.running_var.fill_(1.0)
        self.weight.fill_(1.0)
        self.bias.zero_()
