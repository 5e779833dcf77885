"""A stage between two steps, as it goes into a checkpoint, and comes out of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from distqat.averaging import catchup
from distqat.averaging.context import Sibling
from distqat.averaging.outer import OuterState, Part
from distqat.averaging.spans import Shape
from distqat.config import RunConfig
from distqat.errors import DistqatError, StateError
from distqat.ids import Endpoint, PeerId, StageIndex, StepRef, short
from distqat.model.agreement import Verdict
from distqat.model.local import LocalState
from distqat.roles.checkpoint.cadence import is_due
from distqat.roles.checkpoint.files import CONFIG, Manifest
from distqat.roles.checkpoint.keeper import Groups, Keeper
from distqat.roles.checkpoint.words import Checkpoint, Load
from distqat.roles.copies.copy import Copy
from distqat.roles.seat import Seat

log = logging.getLogger(__name__)

OUTER, LOCAL, RESIDUALS, MOMENTA = "outer", "local", "residuals", "momenta"
"""The files of a checkpoint."""


class Saver:
    """Offers the state of a seat to the keeper when it is due: a copy is made while the gate is shut, and no more."""

    def __init__(
        self, config: RunConfig, peer: str, seat: Seat, keeper: Keeper, verdict: Callable[[], Verdict]
    ) -> None:
        self._config = config
        self._peer = peer
        self._seat = seat
        self._keeper = keeper
        self._verdict = verdict  # On the last committed step.
        self._seen: OuterState | None = None  # What was committed at the last look.

    async def begin(self) -> None:
        """Look after each round, from when the seat has the numbers on that it begins with; returns then."""
        await self._seat.arrived.wait()
        self._seen = self._seat.averager.outer
        self._seat.rounds.on_rest = self.look

    async def look(self, is_settled: bool) -> None:
        """Between two steps, with no round under way: make a checkpoint if this is one of its rounds, or if all that
        was learned is committed: then steps may end for good."""
        outer, every = self._seat.averager.outer, self._config.checkpoint.steps
        before, self._seen = self._seen, outer
        if outer is None or (before is not None and outer.round == before.round):
            return
        if not is_due(before.cut if before is not None else (), outer.cut, every) and not (is_settled and every):
            return
        if self._keeper.is_busy(self._seat.stage.index):
            log.info("no checkpoint of round %d: the one before is still being written", outer.round)
            return
        try:
            copy = await self._seat.copy()
        except DistqatError as error:
            log.info("no checkpoint of round %d: %s", outer.round, error.reason)
            return
        if copy.digest == outer.digest:
            self._keeper.offer(*self._packed(outer, copy))

    def _packed(self, outer: OuterState, copy: Copy) -> tuple[Manifest, Groups]:
        pipeline, feedback = self._seat.pipeline, self._seat.averager.committed.feedback
        place = StepRef(pipeline, copy.state.version) if pipeline is not None else None
        checkpoint = checkpoint_of(self._seat.stage.index, outer, place, self._verdict() if place is not None else None)
        facts = {
            "samples": list(copy.samples),
            "steps": copy.steps,
            "ordered": copy.is_ordered,
            "version": copy.state.version,
            "share": self._seat.rounds.handover.last_share,
            CONFIG: self._config.canonical(),
        }
        groups: dict[str, Mapping[str, Tensor]] = {OUTER: tensors_of(outer), LOCAL: copy.state.tensors}
        residuals = {str(fragment): held for fragment, held in feedback.save().items()}
        if residuals:
            groups[RESIDUALS] = residuals
        momenta = {str(fragment): held for fragment, held in self._seat.rounds.handover.momenta().items()}
        if momenta:
            groups[MOMENTA] = momenta
        return Manifest(self._config.id, self._peer, checkpoint, facts), groups


class Loader:
    """Brings the state that is ordered out of a checkpoint into a seat."""

    def __init__(self, keeper: Keeper, seat: Seat, mirrors: Mapping[PeerId, Endpoint]) -> None:
        self._keeper = keeper
        self._seat = seat
        self._mirrors = mirrors  # Those alive, and where they answer.

    async def take(self, order: Load) -> None:
        """Load it. Raises StateError; then the stage is as it was, or all of it is to be loaded from elsewhere, and the
        checkpoint is offered no more."""
        index = self._seat.stage.index
        if not any((c.stage, c.digest) == (index, order.digest) for c in self._keeper.checkpoints):
            await self._fetch(order)
            return
        manifest, groups = await self._keeper.read(index, order.round, order.digest)
        try:
            await self._apply(order, manifest, groups)
        except (StateError, KeyError) as error:
            reason = f"the checkpoint of round {order.round} cannot be loaded: {error}"
            self._keeper.refuse(index, order.digest, reason)
            raise StateError(reason) from None

    async def _apply(self, order: Load, manifest: Manifest, groups: Groups) -> None:
        seat, averager = self._seat, self._seat.averager
        checkpoint = manifest.checkpoint
        build = partial(state_of, groups.get(OUTER, {}), checkpoint, averager.context.shapes)
        state = await averager.context.work(build)
        await seat.device.run(partial(self._restore, state, order, manifest.facts, groups.get(LOCAL)))
        averager.resume(state, {int(name): held for name, held in groups.get(RESIDUALS, {}).items()})
        if order.with_local:
            momenta = {int(name): held for name, held in groups.get(MOMENTA, {}).items()}
            seat.rounds.handover.resume(momenta, manifest.facts.get("share", 0.0))
            facts = manifest.facts
            seat.rounds.resume(facts["samples"], facts["steps"], facts.get("ordered", False))
            if checkpoint.local is not None:
                seat.rounds.handover.origins = {checkpoint.local.pipeline: checkpoint.local.step}

    async def _fetch(self, order: Load) -> None:
        """The checkpoint of a mirror: what is committed, and nothing else."""
        seat, averager = self._seat, self._seat.averager
        faults = []
        for peer, endpoint in self._mirrors.items():
            # One after the other: of several that are asked at once that with the most rounds would count.
            donor = Sibling(peer, endpoint, order.round, order.digest, True)
            try:
                state = fresh(await catchup.fetch(averager.context, [donor], order.round))
            except StateError as error:
                faults.append(error.reason)
                continue
            if state.digest == order.digest:
                await seat.device.run(partial(seat.stage.scatter, range(len(state.parts)), state.anchor))
                averager.resume(state, {})
                return
            faults.append(f"{short(peer)} gives another state of round {state.round}")
        why = "; ".join(faults) or "there is none"
        raise StateError(f"no mirror gives the checkpoint of round {order.round}: {why}")

    def _restore(
        self, state: OuterState, order: Load, facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None
    ) -> None:
        """On the device's thread: the optimizer goes on where it was in any case, if it is there."""
        stage = self._seat.stage
        if tensors is not None:
            stage.restore(LocalState(facts["version"], tensors))
        if tensors is None or not order.with_local:
            stage.scatter(range(len(state.parts)), state.anchor)


def checkpoint_of(stage: StageIndex, outer: OuterState, local: StepRef | None, verdict: Verdict | None) -> Checkpoint:
    """What is said of a checkpoint of this state."""
    return Checkpoint(stage, outer.round, fresh(outer).digest, outer.cut, local, verdict)


def fresh(outer: OuterState) -> OuterState:
    """The state as a swarm begins with it anew: who committed it is gone, so who is there decides what is next."""
    return OuterState.of(outer.parts, outer.round, (), outer.cut)


def tensors_of(outer: OuterState) -> dict[str, Tensor]:
    """By name."""
    anchors = {f"anchor/{index}": part.anchor for index, part in enumerate(outer.parts)}
    return anchors | {f"momentum/{index}": part.momentum for index, part in enumerate(outer.parts)}


def state_of(tensors: Mapping[str, Tensor], checkpoint: Checkpoint, shapes: tuple[Shape, ...]) -> OuterState:
    """The committed state of these tensors. Raises StateError unless it is of a stage of these shapes, and the one that
    the checkpoint says."""
    try:
        parts = [Part.of(tensors[f"anchor/{i}"], tensors[f"momentum/{i}"]) for i in range(len(shapes))]
    except KeyError as error:
        raise StateError(f"the checkpoint of round {checkpoint.round} lacks {error}") from None
    if tuple(part.shape for part in parts) != shapes:
        raise StateError(f"the checkpoint of round {checkpoint.round} is of another stage")
    state = OuterState.of(parts, checkpoint.round, (), checkpoint.cut)
    if state.digest != checkpoint.digest:
        raise StateError(f"the checkpoint of round {checkpoint.round} does not have the digest that it claims")
    return state
