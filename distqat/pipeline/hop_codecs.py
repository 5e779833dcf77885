"""Which codec the tensors of a hop take, each way: a choice of whoever sends them. Pure.

Both ends of a hop work it out from the run's settings; the opening message shows that they have come to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distqat.errors import MessageError
from distqat.wire.codecs.learned import Form
from distqat.wire.tensors import DTYPES, TensorHeader
from distqat.wire_sections import WireSection

INPUTS = "inputs"
HIDDEN = "hidden"
GRADIENT = "gradient"
TIED = "tied"
"""Down: the tensor that the last stage borrows from the first one. Up: its gradient. It travels exactly, both ways."""


@dataclass(frozen=True)
class HopCodecs:
    """Of the hop between two neighbours."""

    activations: str = "none"
    """Down: of the inputs, or of what the stage above has computed."""
    gradients: str = "none"
    """Up: of the gradient of that."""

    def __str__(self) -> str:
        return f"activations as {self.activations} and gradients as {self.gradients}"


def names_of(stage_name: str, num_stages: int) -> list[str]:
    """The names of all stages of the model, from that of one: `gpt/1` is of `gpt/0`, `gpt/1`, ..."""
    model = stage_name.rpartition("/")[0]
    return [f"{model}/{index}" for index in range(num_stages)]


def codecs_of(wire: WireSection, stage_names: Sequence[str], stage: int, has_offsets: bool = False) -> HopCodecs:
    """Codecs of the hop above `stage`; the trainer stands above stage 0 and gets no tensors back.

    `has_offsets`: whether learned codes count from a learned offset.
    """
    if stage == 0:
        return HopCodecs(wire.inputs)
    above, below = stage_names[stage - 1], stage_names[stage]
    codes = wire.learned_of(above)
    down = wire.activations_of(above) if codes is None else Form.of(codes, has_offsets).name
    return HopCodecs(down, wire.gradients_of(below))


def check_codecs(headers: Iterable[TensorHeader], agreed: str) -> None:
    """Activations or gradients come in the codec that was agreed, all else exactly. Raises MessageError."""
    for header in headers:
        is_bulk = header.name in (INPUTS, HIDDEN, GRADIENT)
        dtype = DTYPES.get(header.dtype)
        # Integers have no codec: token numbers go as they are.
        codec = agreed if is_bulk and dtype is not None and dtype.is_floating_point else "none"
        if header.codec != codec:
            raise MessageError(f"tensor '{header.name}' came as {header.codec}, where {codec} was agreed")
