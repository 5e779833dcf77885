"""Where the tensors of a stage lie in its flat vector, and what they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class TensorSlot:
    """Where a named tensor lies in the flat vector of its stage."""

    name: str
    """As in the uncut model whatever the cut, such as `blocks.3.attention.weight`."""
    shape: tuple[int, ...]
    offset: int
    size: int
    is_parameter: bool
    """False for running statistics, which are averaged but have no gradient."""

    @property
    def block(self) -> int:
        """Index of its block in the uncut model."""
        return int(self.name.split(".")[1])

    @property
    def layer(self) -> str:
        """Name of the module that holds it."""
        return self.name.rpartition(".")[0]


def running_statistics(blocks: nn.ModuleList) -> Iterator[tuple[str, Tensor]]:
    """Buffers that training changes, with their names: kept ones of floats. Masks, tables and counters are not."""
    kept = blocks.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in blocks.named_buffers() if name in kept and buffer.is_floating_point())


def layout_of(first_block: int, blocks: nn.ModuleList) -> tuple[TensorSlot, ...]:
    """Parameters in order, then running statistics; `first_block` is the index of the first block in the whole."""
    slots: list[TensorSlot] = []
    offset = 0
    for is_parameter, named in ((True, blocks.named_parameters()), (False, running_statistics(blocks))):
        for path, tensor in named:
            number, _, rest = path.partition(".")
            name = f"blocks.{first_block + int(number)}.{rest}"
            slots.append(TensorSlot(name, tuple(tensor.shape), offset, tensor.numel(), is_parameter))
            offset += tensor.numel()
    return tuple(slots)
