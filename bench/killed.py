"""A member that is killed in mid-round: how long the rest need, and whether they agree; hivemind the same way.

The directory of the others never learns of the death: they find out by themselves. Ours dies when it has sent a third
of what it sends in a round, hivemind's when half of its exchange is over, with everything that it has started.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from statistics import median

from bench.averagers import open_averagers
from bench.case import Case, Goal, Line
from bench.group import open_group
from bench.hivemind import PeerError
from bench.machines import Machine
from bench.roundlines import Size, together
from bench.runs import Run
from distqat.sections import SyncSection

log = logging.getLogger(__name__)

AT_MOST_TWICE = Goal("ratio", 0.5)
"""Of a round without faults."""

WARM = 2
HEALTHY = 3
"""Rounds before each kill, of which the last ones say what a round without faults takes."""

COMPRESSION = "NONE"


async def killed(size: Size, machine: Machine, kills: int) -> AsyncIterator[Line]:
    """So many rounds of fp32 in which the last member dies."""
    machines = [machine] * size.siblings
    healthy, ours = await _ours(size, machines, kills)
    name = f"{size}, none, one killed in mid-round"
    seconds = [run.seconds for run in ours]
    case = Case("round", name, "s", "lower", "the same without a kill", AT_MOST_TWICE)
    yield case.line(seconds, [run.seconds for run in healthy])
    theirs = await _hivemind(size, machines, kills)
    peers = [(COMPRESSION, theirs)] if theirs else []
    if theirs:
        case = Case("round", name, "s", "lower", f"hivemind, {COMPRESSION}, one killed")
        yield case.line(seconds, [run.seconds for run in theirs])
    for line in together(Case("round", f"{name}: the others succeed", "share", "higher"), ours, peers):
        yield line


async def _ours(size: Size, machines: Sequence[Machine], kills: int) -> tuple[list[Run], list[Run]]:
    healthy: list[Run] = []
    found: list[Run] = []
    async with open_group(machines) as group:
        for number in range(kills):
            if number:
                await group.replace_last()
            await group.prepare(size.elements, SyncSection(warmup_steps=0, codec="none"))
            before = [await group.round() for _ in range(WARM + HEALTHY)][WARM:]
            healthy += before
            third = median(run.sent for run in before) / size.siblings / 3
            found.append(await group.kill(int(third)))
    return healthy, found


async def _hivemind(size: Size, machines: Sequence[Machine], kills: int) -> list[Run]:
    """A new group for each: what a kill has left does not find together again."""
    found = []
    for _ in range(kills):
        try:
            async with open_averagers(machines) as peers:
                await peers.prepare(size.elements, [COMPRESSION])
                before = [await peers.round(COMPRESSION, is_watched=True) for _ in range(WARM + 1)][-1]
                exchange = before.seconds - (before.formed or 0.0)
                found.append(await peers.kill(COMPRESSION, exchange / 2))
        except PeerError as error:
            log.warning("left out: %s", error)
    return found
