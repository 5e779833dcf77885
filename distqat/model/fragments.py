"""The tensors of a stage, dealt out to the fragments that synchronise in turn. Pure.

Layers are dealt like cards, block i of the stage to fragment i mod P: neighbours synchronise at different times, and
every fragment has early and late layers (the strided pattern of Streaming DiLoCo, arXiv:2501.18512). A stage of fewer
blocks than fragments deals single tensors, the largest first, each to the fragment that has least. Both depend on the
stage's layout alone, so all siblings deal alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distqat.errors import ModelError
from distqat.model.layout import TensorSlot


@dataclass(frozen=True)
class Fragment:
    """Some tensors of a stage; its vector has their elements one behind the other."""

    slots: tuple[int, ...]
    """Places in the stage's layout: parameters in the model's order, then running statistics."""
    num_parameters: int
    num_elements: int
    """With running statistics."""


def deal(layout: Sequence[TensorSlot], number: int, stage: str) -> tuple[Fragment, ...]:
    """All tensors of that layout in `number` fragments, none of which is without parameters.

    One fragment is the whole stage in the layout's order. Raises ModelError when there are fewer parameters than that.
    """
    parameters = [place for place, slot in enumerate(layout) if slot.is_parameter]
    if len(parameters) < number:
        raise ModelError(
            f"sync.fragments is {number}, but stage {stage} has only {len(parameters)} tensors to deal out; "
            f"take at most {len(parameters)}"
        )
    blocks = list(dict.fromkeys(layout[place].block for place in parameters))
    if len(blocks) >= number:
        owners = {place: blocks.index(layout[place].block) % number for place in parameters}
    else:
        owners = _balanced(layout, parameters, number)
    owners |= _with_their_layers(layout, owners)
    return tuple(
        _fragment(layout, [place for place in range(len(layout)) if owners[place] == index]) for index in range(number)
    )


def _balanced(layout: Sequence[TensorSlot], parameters: Sequence[int], number: int) -> dict[int, int]:
    loads = [0] * number
    owners = {}
    for place in sorted(parameters, key=lambda place: (-layout[place].size, place)):
        owner = loads.index(min(loads))
        owners[place] = owner
        loads[owner] += layout[place].size
    return owners


def _with_their_layers(layout: Sequence[TensorSlot], owners: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Running statistics go where the first parameter of their layer went, else where that of their block did."""
    of_layer: dict[str, int] = {}
    of_block: dict[int, int] = {}
    for place, owner in sorted(owners.items()):
        of_layer.setdefault(layout[place].layer, owner)
        of_block.setdefault(layout[place].block, owner)
    for place, slot in enumerate(layout):
        if not slot.is_parameter:
            yield place, of_layer.get(slot.layer, of_block.get(slot.block, 0))


def _fragment(layout: Sequence[TensorSlot], places: Sequence[int]) -> Fragment:
    sizes = [(layout[place].size, layout[place].is_parameter) for place in places]
    return Fragment(tuple(places), sum(size for size, counts in sizes if counts), sum(size for size, _ in sizes))
