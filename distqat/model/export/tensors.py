"""The tensors of a model by the names that readers look for.

A model of the zoo, or one's own, has the names of checkpoints: `blocks.<number>.<path>`. One of a family of
`transformers` has the names of the library's own model, so what is not quantised loads there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from distqat.model.ties import BorrowedLinear
from distqat.model.zoo.blocks import BlockSpec


def unite(blocks: nn.ModuleList, specs: Sequence[BlockSpec]) -> None:
    """Let the last block of a model that is tied have the first one's tensor under its own name too."""
    lent = specs[0].lends
    if lent is None:
        return
    shared = blocks[0].get_parameter(lent)
    for module in blocks[len(blocks) - 1].modules():
        if isinstance(module, BorrowedLinear):
            del module.weight
            module.register_parameter("weight", shared)


def named(blocks: nn.ModuleList, specs: Sequence[BlockSpec]) -> dict[str, Tensor]:
    """All that is kept of a model: parameters, running statistics, codes and scales. Each in memory of its own."""
    state = blocks.state_dict()
    return {name_of(path, specs): tensor.detach().contiguous().clone() for path, tensor in state.items()}


def name_of(path: str, specs: Sequence[BlockSpec]) -> str:
    """What a reader calls that tensor, or layer, of `blocks`."""
    number, _, rest = path.partition(".")
    for prefix, other in specs[int(number)].origins.items():
        if rest.startswith(prefix):
            return other + rest.removeprefix(prefix)
    return f"blocks.{path}"
