"""What the loss of an expert costs: in loss, by what its successor goes on with, and in seconds.

And how soon a newcomer contributes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from bench import recovery, regroup, restored
from bench.case import Line
from bench.workers import open_worker

SOURCES = ("digits", "pydocs")
SEEDS = (1, 2, 3)
KILLS = 10


async def bench(quick: bool) -> AsyncIterator[Line]:
    """First the loss, in one process; then the seconds, with daemons."""
    for source in SOURCES[:1] if quick else SOURCES:
        async with open_worker("failover", restored.open_course, source) as worker:
            found = [await worker.ask("losses", seed) for seed in (SEEDS[:1] if quick else SEEDS)]
        for line in restored.lines(source, found):
            yield line
    for kill in recovery.KILLS[:1] if quick else recovery.KILLS:
        for line in recovery.lines(kill, await recovery.recoveries(kill, 2 if quick else KILLS)):
            yield line
    for line in regroup.lines(await regroup.regroupings(2 if quick else KILLS)):
        yield line
