"""What a peer says of the checkpoints that it holds. Pure; mirrors control.proto."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.ids import StepRef
from distqat.model.agreement import Verdict


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a stage that is whole."""

    stage: int
    round: int
    """Rounds committed."""
    digest: str
    """Of the committed state as it comes out of the checkpoint; equal digests mean equal bits."""
    cut: tuple[StepRef, ...] = ()
    """The last step of each pipeline that is in it."""
    local: StepRef | None = None
    """Where the pipeline was of which it has the local state too; None: it has none."""
    verdict: Verdict | None = None
    """On that step."""


@dataclass(frozen=True)
class CheckpointStatus:
    """The checkpoints of a daemon."""

    checkpoints: tuple[Checkpoint, ...] = ()
    """Those that are whole, the newest first."""
    age: float = 0.0
    """Seconds since the newest was written; 0 if there is none."""
    fault: str = ""
    """Why the last one could not be written, or which one could not be read; empty if all is well."""
    books: int = 0
    """Claims in the books of the run that lie beside them; 0: there are none."""


@dataclass(frozen=True)
class Load:
    """An order to an expert: take the stage out of your checkpoint, or from that of a mirror."""

    round: int
    digest: str
    with_local: bool = False
    """Whether its pipeline goes on at the step of the local state; else what is committed counts."""


@dataclass(frozen=True)
class Begin:
    """Where a new pipeline begins: after the step of an earlier one, with the verdict on that."""

    step: int
    verdict: Verdict
