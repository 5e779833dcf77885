"""From which checkpoints a swarm goes on, and which steps are in them. Pure.

A round is the same for all siblings of a stage, and each pipeline comes to it at some step: the cut. Checkpoints of
all stages with one and the same cut are a moment of the whole run. Where stages did not come to a round at the same
step (one was invited earlier, or a round failed in one of them), the newest of each stage are taken and the books go
back to the earliest step: nothing is lost, and a few steps are trained again. So a moment that lies far behind is not
gone back to, however well it fits together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from distqat.ids import PeerId, PipelineId, StageIndex, StepRef
from distqat.roles.checkpoint.words import Begin, Checkpoint, Load

Cut = frozenset[StepRef]


@dataclass(frozen=True)
class Holder:
    """A live expert, or a mirror, and the checkpoints that it holds."""

    peer: PeerId
    checkpoints: tuple[Checkpoint, ...] = ()
    pinned: int | None = None
    """The only stage that an expert takes; None: any."""
    is_mirror: bool = False
    """It takes no stage, and gives what it holds to any expert."""

    def of(self, stage: int) -> list[Checkpoint]:
        """Those of a stage that it may take, or give."""
        return [held for held in self.checkpoints if held.stage == stage and self.may_take(stage)]

    def may_take(self, stage: int) -> bool:
        """Whether a stage may be its."""
        return self.pinned in (None, stage)


@dataclass(frozen=True)
class Revival:
    """Experts that go on as one pipeline, stage 0 first, where another was."""

    peers: tuple[PeerId, ...]
    was: PipelineId
    begin: Begin


@dataclass(frozen=True)
class Choice:
    """What is loaded where, and what the books say afterwards."""

    loads: Mapping[PeerId, tuple[StageIndex, Load]]
    steps: Mapping[str, int]
    """The last step of each pipeline that is in it."""
    revivals: tuple[Revival, ...]
    rounds: tuple[int, ...]
    """By stage."""
    is_exact: bool
    """All stages are of the same moment."""
    is_newest: bool
    """Nobody who is here holds a newer one of any stage."""

    @property
    def is_best(self) -> bool:
        """Whether nothing that may still come from those who are here could be better."""
        return self.is_exact and self.is_newest

    def describe(self) -> str:
        """For people."""
        rounds = ", ".join(str(number) for number in sorted(set(self.rounds)))
        text = f"going on from the checkpoints of round {rounds}"
        if not self.is_newest:
            text += ", although newer ones of some stages are here: of others they are not"
        return text if self.is_exact else f"{text}; stages differ by a few steps, which are trained again"


def uncovered(holders: Sequence[Holder], stages: Sequence[int]) -> list[int]:
    """Stages of which nobody has a checkpoint."""
    return [stage for stage in stages if not any(holder.of(stage) for holder in holders)]


def choose(holders: Sequence[Holder], stages: Sequence[int], reach: Callable[[int], int]) -> Choice | None:
    """The newest moment of the whole run that is held here, unless the newest of each stage lie far beyond it; then
    these. None if there is nobody to take a stage.

    `stages` are those that nobody holds alive; `reach` says, of the rounds of the newest, how many rounds a moment has
    at least that is gone back to.
    """
    cuts = {frozenset(held.cut) for holder in holders for stage in stages for held in holder.of(stage)}
    exact = [choice for cut in sorted(cuts, key=sorted) if (choice := _choice(holders, stages, cut)) is not None]
    newest = _choice(holders, stages, None)
    if exact:
        best = max(exact, key=lambda choice: (min(choice.rounds), sum(choice.steps.values())))
        # Without experts enough to take the newest there is nothing better.
        if newest is None or min(best.rounds) >= reach(min(newest.rounds)):
            return best
    return newest


def _choice(holders: Sequence[Holder], stages: Sequence[int], cut: Cut | None) -> Choice | None:
    """With checkpoints of exactly that cut; None: with the newest of each stage."""
    chosen: dict[int, Checkpoint] = {}
    for stage in stages:
        found = [held for holder in holders for held in holder.of(stage) if cut is None or frozenset(held.cut) == cut]
        if not found:
            return None
        # Of two courses of the run with the same round the one that more have.
        copies = Counter((held.round, held.digest) for held in found)
        number, digest = max(copies, key=lambda key: (key[0], copies[key], key[1]))
        chosen[stage] = next(held for held in found if (held.round, held.digest) == (number, digest))
    seats = _seats(holders, chosen)
    if seats is None:
        return None
    revivals = tuple(_revivals(seats, stages))
    going_on = {peer for revival in revivals for peer in revival.peers}
    loads = {
        peer: (StageIndex(held.stage), Load(held.round, held.digest, with_local=peer in going_on))
        for peer, held in seats.items()
    }
    newest = {stage: max(held.round for holder in holders for held in holder.of(stage)) for stage in stages}
    return Choice(
        loads=loads,
        steps=_steps(chosen) | {revival.was: revival.begin.step for revival in revivals},
        revivals=revivals,
        rounds=tuple(chosen[stage].round for stage in stages),
        is_exact=len({frozenset(held.cut) for held in chosen.values()}) == 1,
        is_newest=all(chosen[stage].round == newest[stage] for stage in stages),
    )


def _seats(holders: Sequence[Holder], chosen: Mapping[int, Checkpoint]) -> dict[PeerId, Checkpoint] | None:
    """Who takes which stage: everybody one of which it holds the chosen checkpoint, and every stage somebody."""
    own = {
        holder.peer: {
            stage: held
            for stage, wanted in chosen.items()
            for held in holder.of(stage)
            if (held.round, held.digest) == (wanted.round, wanted.digest)
        }
        for holder in sorted(holders, key=lambda holder: holder.peer)
    }
    mirrored = {stage: held for holder in holders if holder.is_mirror for stage, held in own[holder.peer].items()}
    experts = [holder for holder in holders if not holder.is_mirror]
    # Who holds a checkpoint itself goes before who has to fetch it.
    able = {
        holder.peer: {**{s: c for s, c in mirrored.items() if holder.may_take(s)}, **own[holder.peer]}
        for holder in sorted(experts, key=lambda holder: (not own[holder.peer], holder.peer))
    }
    seats: dict[PeerId, Checkpoint] = {}
    for stage in chosen:
        if not _place(stage, able, seats, set()):
            return None
    for peer, stages in own.items():
        if peer not in able:
            continue
        if peer not in seats and stages:
            # Where fewest are: pipelines need all stages.
            seats[peer] = min(stages.values(), key=lambda h: (sum(s.stage == h.stage for s in seats.values()), h.stage))
    return seats


def _place(
    stage: int, able: Mapping[PeerId, Mapping[int, Checkpoint]], seats: dict[PeerId, Checkpoint], tried: set[PeerId]
) -> bool:
    """Find somebody for the stage; who has another one may leave it to somebody else (augmenting paths)."""
    for peer in sorted(able, key=lambda peer: peer in seats):
        stages = able[peer]
        if stage not in stages or peer in tried:
            continue
        tried.add(peer)
        before = seats.get(peer)
        if before is None or _place(before.stage, able, seats, tried):
            seats[peer] = stages[stage]
            return True
    return False


def _revivals(seats: Mapping[PeerId, Checkpoint], stages: Sequence[int]) -> list[Revival]:
    """Pipelines that go on: all their stages are here and stand at the same step of the pipeline."""
    places = {held.local for held in seats.values() if held.local is not None}
    found = []
    for place in sorted(places):
        parts = {held.stage: (peer, held) for peer, held in sorted(seats.items(), reverse=True) if held.local == place}
        verdicts = {held.verdict for _, held in parts.values()}
        verdict = next(iter(verdicts))
        if set(parts) == set(stages) and len(verdicts) == 1 and verdict is not None:
            peers = tuple(parts[stage][0] for stage in sorted(parts))
            found.append(Revival(peers, place.pipeline, Begin(place.step, verdict)))
    return found


def _steps(chosen: Mapping[int, Checkpoint]) -> dict[str, int]:
    """Of each pipeline the last step that is in all stages."""
    cuts = [{last.pipeline: last.step for last in held.cut} for held in chosen.values()]
    return {pipeline: min(cut.get(pipeline, 0) for cut in cuts) for pipeline in {name for cut in cuts for name in cut}}
