"""The numbers of each stage, as rounds commit them, into the uncut model; no stage is built for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from distqat.errors import ModelError
from distqat.model import vectors
from distqat.model.fragments import Fragment, deal
from distqat.model.layout import TensorSlot
from distqat.model.slice import Slice


@dataclass(frozen=True)
class StageValues:
    """Where the numbers of a stage lie in the vectors of its fragments."""

    name: str
    layout: tuple[TensorSlot, ...]
    """As the stage itself has it."""
    fragments: tuple[Fragment, ...]


def stage_values(whole: Slice, name: str, own: range, fragments: int) -> StageValues:
    """Of the stage of these blocks. Raises ModelError as the stage would."""
    layout = tuple(slot for slot in whole.layout if slot.block in own)
    return StageValues(name, layout, deal(layout, fragments, name))


def put(whole: Slice, stage: StageValues, anchors: Sequence[Tensor]) -> None:
    """Take over the numbers of a stage, a vector [num_elements] for each fragment. Raises ModelError for others."""
    if [anchor.numel() for anchor in anchors] != [fragment.num_elements for fragment in stage.fragments]:
        raise ModelError(f"the numbers are not those of a stage {stage.name} of this model")
    tensors = dict(zip((slot.name for slot in whole.layout), [*whole.parameters, *whole.buffers], strict=True))
    for fragment, anchor in zip(stage.fragments, anchors, strict=True):
        vectors.write([tensors[stage.layout[place].name] for place in fragment.slots], anchor)
