"""The loss of an expert that nobody can replace, beside a sibling pipeline; then a newcomer, until it contributes.

The broken pipeline ends, its samples and its other experts are free, and the sibling pipeline goes on: whatever it
waited for together with the dead, such as a round, it waits for no more.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, time

from bench.case import Case, Goal, Line
from bench.recovery import LOOK_SECONDS, PATIENCE, Crew, Kill, RecoveryError, open_crew, percentiles
from distqat.cli.daemons import Daemon, address_of
from distqat.errors import DistqatError
from distqat.events import Kind as Happened
from distqat.roles.remote import Remote
from distqat.roles.status import PeerStatus

WITHIN_5 = Goal("value", 5.0)
ONE_ROUND = Goal("value", 1.0)

ALONE = Kill("SIGKILL, no spare but a sibling pipeline", signal.SIGKILL, False, 10.0, (None, WITHIN_5), spares=0)


@dataclass(frozen=True)
class Regrouping:
    """After one kill."""

    seconds: float
    """From the kill until a step that is committed after the broken pipeline was dissolved."""
    joined: float
    """From the newcomer's state until the first committed round that it is in."""
    rounds: int
    """That the siblings committed without it after it had their state."""


def lines(found: Sequence[Regrouping]) -> list[Line]:
    """Seconds by percentile, and what newcomers miss."""
    made = percentiles(ALONE.name, [one.seconds for one in found], ALONE.goals)
    made += percentiles("a newcomer contributes", [one.joined for one in found], (None, None), "newcomers")
    case = Case("failover", "rounds without a newcomer that has the state", "rounds", "lower", goal=ONE_ROUND)
    # Each of them, so the largest counts.
    return [*made, case.line([float(max(one.rounds for one in found))])]


async def regroupings(times: int) -> list[Regrouping]:
    """So many kills in one swarm, each with a newcomer."""
    async with open_crew(ALONE) as crew:
        return [await _regroup(crew) for _ in range(times)]


async def _regroup(crew: Crew) -> Regrouping:
    status = await crew.ready()
    victim, pipeline = next((peer, e.pipeline) for peer, e in status.experts() if e.seated and e.pipeline)
    daemon = next(d for d in crew.daemons if address_of(d) == victim.endpoint)
    serials = await crew.serials()
    began = time()
    daemon.process.send_signal(signal.SIGKILL)
    seconds = await _gone_on(crew.remote(), pipeline, *serials) - began
    await crew.bury(daemon)
    return Regrouping(seconds, *await _contributed(crew, crew.add()))


async def _gone_on(head: Remote, pipeline: str, event: int, metric: int) -> float:
    """When a step was committed after that pipeline had been dissolved, by the clock of this machine."""
    end = monotonic() + PATIENCE
    while monotonic() < end:
        await asyncio.sleep(LOOK_SECONDS)
        dissolved = [
            told.wall
            for told in (await head.events(event)).events
            if told.kind == Happened.DISSOLVED and told.subject.pipeline == pipeline
        ]
        for line in await head.metrics(metric) if dissolved else ():
            if line.kind == "step" and line.time > dissolved[0]:
                return line.time
    raise RecoveryError(f"no step for {PATIENCE:g} s after the end of pipeline {pipeline}")


async def _contributed(crew: Crew, newcomer: Daemon) -> tuple[float, int]:
    """Seconds and rounds from the newcomer's state to its first contribution."""
    end = monotonic() + PATIENCE
    while monotonic() < end:
        await asyncio.sleep(LOOK_SECONDS)
        address = address_of(newcomer)
        try:
            remote = crew.remote(address)
            first = contribution(await remote.status()) if address is not None else None
            if first is None:
                continue
            told = (await remote.events()).events
        except DistqatError:
            continue  # It is starting.
        obtained = next(one for one in told if one.kind == Happened.STATE_OBTAINED)
        committed = next(one for one in told if one.kind == Happened.ROUND_COMMITTED and one.subject.round == first)
        assert obtained.subject.round is not None
        return committed.wall - obtained.wall, first - obtained.subject.round
    raise RecoveryError(f"the newcomer has contributed nothing for {PATIENCE:g} s")


def contribution(status: PeerStatus) -> int | None:
    """The first round, counted from 0, that the peer has contributed to; None while there is none."""
    for expert in (role.expert for role in status.roles if role.expert is not None):
        for receipt in expert.receipts:
            if status.peer in receipt.contributors:
                return receipt.round
    return None
