"""Which codec the tensors of a hop take, each way: a choice of whoever sends them. Pure.

Both ends of a hop work it out from the run's settings; the opening message shows that they have come to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from distqat.errors import MessageError
from distqat.sections import WireSection
from distqat.wire.tensors import DTYPES, TensorHeader

INPUTS = "inputs"
HIDDEN = "hidden"
GRADIENT = "gradient"


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


def codecs_of(wire: WireSection, stage_names: Sequence[str], stage: int) -> HopCodecs:
    """Codecs of the hop above `stage`; the trainer stands above stage 0 and gets no tensors back."""
    if stage == 0:
        return HopCodecs(wire.inputs)
    above, below = stage_names[stage - 1], stage_names[stage]
    return HopCodecs(_chosen(wire, above, "activations"), _chosen(wire, below, "gradients"))


def check_codecs(headers: Iterable[TensorHeader], agreed: str) -> None:
    """Activations or gradients come in the codec that was agreed, all else exactly. Raises MessageError."""
    for header in headers:
        is_bulk = header.name in (INPUTS, HIDDEN, GRADIENT)
        dtype = DTYPES.get(header.dtype)
        # Integers have no codec: token numbers go as they are.
        codec = agreed if is_bulk and dtype is not None and dtype.is_floating_point else "none"
        if header.codec != codec:
            raise MessageError(f"tensor '{header.name}' came as {header.codec}, where {codec} was agreed")


def _chosen(wire: WireSection, sender: str, what: Literal["activations", "gradients"]) -> str:
    """The last override that speaks of this sender wins, as later lines of a config do."""
    codec: str = getattr(wire, what)
    for override in wire.overrides:
        other: str | None = getattr(override, what)
        if other is not None and fnmatchcase(sender, override.stages):
            codec = other
    return codec
