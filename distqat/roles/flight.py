"""Between a stage and its rounds: what goes out of the stage, what comes back, and what its numbers stand for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from distqat.averaging import merging
from distqat.averaging.averager import Averager, Outcome
from distqat.averaging.merging import Ahead
from distqat.averaging.phases import Phase
from distqat.ids import PipelineId, StepRef
from distqat.model.stage import Stage


@dataclass(eq=False)
class Flight:
    """A round under way."""

    how: Phase
    samples: Mapping[int, int]
    """By fragment: what its local values stand for."""
    local: torch.Tensor
    """Those values."""
    ahead: Ahead | None
    """Eager: where the steps beside the round begin; None: they go on from `local`."""
    steps: int = 0
    """Committed since it began."""
    origins: tuple[StepRef, ...] = ()
    """Up to which step of which pipeline its local values go."""
    come: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the outcome is known."""
    outcome: Outcome | None = None
    """None while it is not known, and when the round failed."""


class Handover:
    """Samples by fragment, and numbers to and fro.

    The samples of a fragment are those that its local values, beyond the anchor, stand for; they weigh what it
    contributes. All that went into a committed round are in its anchor, and count no more. Of those that came beside
    the round as many count on as were kept of the local values: `sync.merge` of them, or all if it is eager.
    """

    def __init__(self, stage: Stage, averager: Averager) -> None:
        self.samples = dict.fromkeys(range(len(stage.fragments)), 0)  # By fragment.
        self.origins: dict[PipelineId, int] = {}  # By pipeline the last step that the samples are of.
        self.replayed = 0  # Rounds that were missed and replayed.
        self._stage = stage
        self._averager = averager
        self._sync = averager.context.sync
        self._share = 0.0  # Of own samples in the last round; 0 before the first.
        self._momenta: dict[int, torch.Tensor] = {}  # Eager: of own contributions, by fragment; see `merging`.

    def __repr__(self) -> str:
        return f"<Handover {self.samples}>"

    def count(self, samples: int, at: StepRef | None = None) -> None:
        """A step of so many samples is committed; `at`: which."""
        if at is not None:
            self.origins[at.pipeline] = at.step
        for fragment in self.samples:
            self.samples[fragment] += samples

    def share(self) -> float:
        """The part of the next round's samples that is expected to be this sibling's."""
        return self._share or 1 / (1 + len(self._averager.context.ready()))

    @property
    def last_share(self) -> float:
        """That part of the last round; 0 before the first."""
        return self._share

    def momenta(self) -> dict[int, torch.Tensor]:
        """Eager: of own contributions, by fragment; they are replaced by others, and never changed."""
        return dict(self._momenta)

    def resume(self, momenta: Mapping[int, torch.Tensor], share: float) -> None:
        """Go on with those of a checkpoint."""
        self._momenta, self._share = dict(momenta), share

    # On the device's thread, between two steps.

    def begin(self, how: Phase, share: float, is_beside: bool) -> Flight:
        """Take the numbers of a round out of the stage; `share` as above, for an eager one that steps go on beside."""
        local = self._stage.gather(how.fragments)
        flight = Flight(how, {index: self.samples[index] for index in how.fragments}, local, None)
        flight.origins = tuple(StepRef(pipeline, step) for pipeline, step in sorted(self.origins.items()))
        if is_beside and self._sync.eager:
            assert self._averager.outer is not None
            flight.ahead = merging.ahead(self._averager.outer, local, how, share, self._momenta)
            self._stage.scatter(how.fragments, flight.ahead.begun)
        return flight

    def merge(self, flight: Flight) -> None:
        """Bring what the round came to into the stage."""
        outcome = flight.outcome
        if outcome is not None and is_own(outcome):
            self._merge_own(flight, outcome)
            return
        if flight.ahead is not None:
            # As if the steps had gone on from the local values.
            self._move(flight, flight.ahead, flight.local, with_statistics=False)
        if outcome is None or not touched_by(outcome):
            return
        if outcome.is_replayed:
            touched = touched_by(outcome)
            local = self._stage.gather(touched)
            self._stage.scatter(touched, merging.carry(local, outcome.before, outcome.state, touched))
        else:
            everything = range(len(outcome.state.parts))
            self._stage.scatter(everything, outcome.state.gather(everything))

    def _merge_own(self, flight: Flight, outcome: Outcome) -> None:
        fragments = flight.how.fragments
        committed = outcome.state.gather(fragments)
        keep = self._kept_of(flight)
        if flight.ahead is not None:
            self._move(flight, flight.ahead, committed, with_statistics=True)
        elif keep:
            self._stage.scatter(fragments, merging.merged(self._stage.gather(fragments), committed, keep))
        else:
            self._stage.scatter(fragments, committed)

    def _move(self, flight: Flight, ahead: Ahead, target: torch.Tensor, with_statistics: bool) -> None:
        fragments = flight.how.fragments
        shapes = [self._averager.context.shapes[index] for index in fragments]
        local = self._stage.gather(fragments)
        self._stage.scatter(fragments, merging.moved(local, ahead.begun, target, shapes, with_statistics))

    # On the event loop, after that.

    def account(self, flight: Flight) -> Sequence[int]:
        """What the samples count now; the fragments that the outcome has changed."""
        outcome = flight.outcome
        if outcome is None:
            return ()
        if is_own(outcome):
            keep = self._kept_of(flight)
            for index, samples in flight.samples.items():
                self.samples[index] = round((self.samples[index] - samples) * keep)
            self._learn(flight, outcome)
        elif outcome.is_replayed:
            self.replayed += outcome.state.round - outcome.before.round
        elif touched_by(outcome):
            self.samples = dict.fromkeys(self.samples, 0)
            self._momenta.clear()
        if not any(self.samples.values()):
            self.origins.clear()
        return touched_by(outcome)

    def _kept_of(self, flight: Flight) -> float:
        """The part of what was learned beside the round that the local values keep."""
        if flight.ahead is not None:
            return 1.0
        return self._sync.merge if flight.steps else 0.0

    def _learn(self, flight: Flight, outcome: Outcome) -> None:
        if flight.ahead is not None:
            self._momenta |= flight.ahead.momenta
        receipt, own = outcome.receipt, max(flight.samples.values())
        if receipt is not None and receipt.samples and own:
            self._share = own / receipt.samples


def is_own(outcome: Outcome) -> bool:
    """Whether the round that the local values were for was committed with this sibling in its group."""
    receipt, before = outcome.receipt, outcome.before.round
    return receipt is not None and receipt.round == before and outcome.state.round == before + 1


def touched_by(outcome: Outcome) -> list[int]:
    """The fragments whose committed numbers have changed."""
    pairs = zip(outcome.before.parts, outcome.state.parts, strict=True)
    return [index for index, (before, after) in enumerate(pairs) if before.digest != after.digest]
