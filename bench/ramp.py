"""What `sync.ramp_rounds` is worth in runs of twenty rounds to two hundred: held-out loss with several ramps.

Two replicas, the settings of a run as they come, and the stronger outer step of the papers. The same steps and samples
with every ramp, so one with a ramp takes more rounds. Trained as in `diloco`, and `--keep FILE` does the same here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.arms import Arm
from bench.case import Case, Line
from bench.diloco import train
from bench.results import Results
from distqat.sections import SyncSection

REPLICAS = 2
OUTER: dict[str, dict[str, float]] = {
    "as it comes": {},
    "outer 0.7/0.9": {"outer_learning_rate": 0.7, "outer_momentum": 0.9},
}


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    rounds: tuple[int, ...]
    """Of a run after its warm-up, without a ramp."""
    ramps: tuple[int, ...]
    """The first is what the others stand beside."""
    outer: tuple[str, ...]
    seeds: tuple[int, ...]


FULL = Plan((20, 60, 200), (0, 10, 20), tuple(OUTER), (1, 2, 3))
QUICK = Plan((20,), (0, 10), ("as it comes",), (1,))


async def bench(quick: bool, keep: Path | None = None) -> AsyncIterator[Line]:
    """Trains what is not in the file yet, then all lines."""
    plan, results = QUICK if quick else FULL, Results(keep)
    for rounds in plan.rounds:
        arms = [arm(outer, ramp) for outer in plan.outer for ramp in plan.ramps]
        await train(arms, plan.seeds, steps(rounds), results)
    for line in lines(plan, results):
        yield line


def arm(outer: str, ramp: int) -> Arm:
    """One ramp with one outer step."""
    sync = SyncSection.model_validate({"ramp_rounds": ramp, **OUTER[outer]})
    return Arm(f"ramp of {ramp}, {outer}", sync, REPLICAS)


def steps(rounds: int) -> int:
    """Of a run of so many rounds after the warm-up."""
    usual = SyncSection()
    return usual.warmup_steps + rounds * usual.inner_steps


def lines(plan: Plan, results: Results) -> Iterator[Line]:
    """Each ramp beside the first."""
    for outer in plan.outer:
        for rounds in plan.rounds:
            first, *others = (_losses(outer, ramp, rounds, plan, results) for ramp in plan.ramps)
            for ramp, losses in zip(plan.ramps[1:], others, strict=True):
                name = f"pydocs, {rounds} rounds, {outer}, {len(plan.seeds)} seeds, ramp of {ramp}"
                yield Case("ramp", name, "nats/byte", "lower", f"ramp of {plan.ramps[0]}").line(losses, first)


def _losses(outer: str, ramp: int, rounds: int, plan: Plan, results: Results) -> list[float]:
    one = arm(outer, ramp)
    found = [results.find(one.described(seed, steps(rounds))) for seed in plan.seeds]
    return [result.loss for result in found if result is not None]
