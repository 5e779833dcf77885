"""What DiLoCo costs in learning and saves in bytes: a byte-level transformer on `pydocs`, the same samples for all.

A local baseline on all the tokens, which is what synchronous data parallel training computes; DiLoCo with 1, 2 and 4
replicas, the codecs of rounds, and training that waits for rounds or goes on beside them (`bench/arms.py`). The rounds
are real ones (`bench/replicas.py`). A whole run takes about half an hour on two cores; with `--keep FILE` one that was
ended goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.arms import FLOORS, LOSSY, REPLICAS, SYNCHRONOUS, WITHOUT, Arm, Way, arm, ways
from bench.case import Case, Goal, Line
from bench.learner import open_learner
from bench.results import Result, Results
from bench.workers import Worker, open_worker

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)

PROCESSES = 2
BESIDE_SYNCHRONOUS = {Way(2): Goal("ratio", 1 / 1.005), Way(4): Goal("ratio", 1 / 1.04)}
BESIDE_EXACT = {"int8": Goal("value", 0.005), "int4": Goal("value", 0.005), "int2": Goal("value", 0.03)}
MEGA = 1e6


@dataclass(frozen=True)
class Length:
    """How much is trained."""

    steps: int
    warmup_steps: int
    seeds: tuple[int, ...]
    ways: tuple[Way, ...]

    def arms(self) -> list[Arm]:
        """Those without rounds first."""
        plain = [SYNCHRONOUS, *FLOORS.values()]
        return plain + [arm(way, self.warmup_steps) for way in self.ways]


FULL = Length(1000, 200, (1, 2, 3), tuple(ways()))
QUICK = Length(100, 25, (1,), tuple(way for way in ways() if way.replicas == min(REPLICAS)))


async def bench(quick: bool, keep: Path | None = None) -> AsyncIterator[Line]:
    """Trains what is not in the file yet, then all lines."""
    length, results = QUICK if quick else FULL, Results(keep)
    await train(length.arms(), length.seeds, length.steps, results)
    for line in lines(length, results):
        yield line


async def train(arms: Sequence[Arm], seeds: Sequence[int], steps: int, results: Results) -> None:
    """Add the results of these arms that are missing; each process takes the next one."""
    wanted = deque((one, seed) for seed in seeds for one in arms)
    missing = deque((one, seed) for one, seed in wanted if results.find(one.described(seed, steps)) is None)
    total, done = len(missing), 0

    async def work(worker: Worker) -> None:
        nonlocal done
        while missing:
            one, seed = missing.popleft()
            result: Result = await worker.ask("learn", one, seed, steps)
            results.add(result)
            done += 1
            log.info(
                "%d of %d: %s, seed %d: loss %.4f, %.2f MB, %d rounds, %.0f s",
                done, total, one.name, seed, result.loss, result.bytes / MEGA, result.rounds, result.seconds,
            )  # fmt: skip

    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(open_worker(f"learner {number}", open_learner, arms[0]))
            for number in range(min(PROCESSES, total))
        ]
        await asyncio.gather(*(work(worker) for worker in workers))


def lines(length: Length, results: Results) -> Iterator[Line]:
    """Losses beside the synchronous run; what codecs cost within a seed; bytes beside gradients at every step."""
    found = {one.name: _of(one, length, results) for one in length.arms()}
    synchronous = _losses(found[SYNCHRONOUS.name])
    name = f"pydocs, {length.steps} steps, {len(length.seeds)} seeds"
    yield Case("diloco", f"{name}, {SYNCHRONOUS.name}", "nats/byte", "lower").line(synchronous)
    for floor in FLOORS.values():
        case = Case("diloco", f"{name}, {floor.name}", "nats/byte", "lower", SYNCHRONOUS.name)
        yield case.line(_losses(found[floor.name]), synchronous)
    for way in length.ways:
        goal = BESIDE_SYNCHRONOUS.get(way) if length is FULL else None
        case = Case("diloco", f"{name}, {way}", "nats/byte", "lower", SYNCHRONOUS.name, goal)
        yield case.line(_losses(found[str(way)]), synchronous)
    yield from _costs(name, length, found)
    yield from _bytes(name, length, found)


def _costs(name: str, length: Length, found: Mapping[str, Sequence[Result]]) -> Iterator[Line]:
    for way in length.ways:
        if way.codec in LOSSY:
            pairs = zip(_losses(found[str(way)]), _losses(found[str(way.exact)]), strict=True)
            goal = BESIDE_EXACT[way.codec] if length is FULL and way.variant != WITHOUT else None
            case = Case("diloco", f"{name}, {way}: more than in fp32, same seed", "nats/byte", "lower", goal=goal)
            yield case.line([rounded - exact for rounded, exact in pairs])


def _bytes(name: str, length: Length, found: Mapping[str, Sequence[Result]]) -> Iterator[Line]:
    for way in length.ways:
        if way.replicas > 1:
            peer = "fp32 gradients of each step, least of an all-reduce, computed"
            case = Case("diloco", f"{name}, {way}: sent and received by a replica", "MB", "lower", peer)
            results = found[str(way)]
            exact = synchronous_bytes(way.replicas, results[0].parameters, length.steps)
            yield case.line([result.bytes / MEGA for result in results], [exact / MEGA])


def synchronous_bytes(replicas: int, parameters: int, steps: int) -> float:
    """Sent and received by one replica, if the gradients of each step are averaged in fp32."""
    return steps * 2 * 2 * (replicas - 1) / replicas * 4 * parameters


def _of(one: Arm, length: Length, results: Results) -> list[Result]:
    found = [results.find(one.described(seed, length.steps)) for seed in length.seeds]
    return [result for result in found if result is not None]


def _losses(results: Sequence[Result]) -> list[float]:
    return [result.loss for result in results]
