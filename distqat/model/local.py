"""What a stage holds at a moment between two steps, beyond what any round has committed: all that its next step follows
from.

A checkpoint has it, and so has whoever takes the seat over. Dropout needs no state: it is derived from the run's seed,
step, microbatch and stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from distqat.errors import StateError

VALUES = "values/"
OPTIMIZER = "optimizer/"


@dataclass(frozen=True, eq=False)
class LocalState:
    """A copy on the CPU; nothing changes it."""

    version: int
    """Steps that are in it."""
    tensors: Mapping[str, Tensor]
    """`values/<name>` of each parameter and running statistic, `optimizer/<name>` of what the optimizer remembers."""

    def __repr__(self) -> str:
        return f"<LocalState version {self.version}, {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def copy_of(version: int, held: Mapping[str, Tensor]) -> LocalState:
    """The state of these tensors as they are now."""
    return LocalState(version, {name: tensor.detach().to("cpu", copy=True) for name, tensor in held.items()})


def check(name: str, state: LocalState, held: Mapping[str, Tensor]) -> None:
    """Raises StateError unless the state has exactly the tensors that the stage of this name holds."""
    for tensor in sorted(held.keys() ^ state.tensors.keys()):
        where = "is missing in the state" if tensor in held else "is in the state only"
        raise StateError(f"local state of stage {name}: {tensor} {where}")
    for tensor, own in held.items():
        other = state.tensors[tensor]
        if other.shape != own.shape or other.dtype != own.dtype:
            expected, got = (f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (own, other))
            raise StateError(f"local state of stage {name}: {tensor} must be {expected}, got {got}")
