"""One step of a pipeline, over all its peers: asked for, put on one clock, written as a trace."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distqat.cli import perfetto
from distqat.cli.perfetto import Told
from distqat.cli.show import size
from distqat.errors import ConfigError, DistqatError, StaleError, UnreachableError
from distqat.ids import Endpoint, short
from distqat.roles.remote import Remote
from distqat.roles.status import SwarmStatus
from distqat.roles.trace.messages import StageTrace, TraceReply
from distqat.timeline import Clock

LAST = "last"

PROBES = 7
"""Questions to each peer for its clock; the quickest answer tells it best."""

CALL_SECONDS = 3.0
"""A peer that does not answer within this long is left out."""


@dataclass(frozen=True)
class Steps:
    """Which steps are wanted; 0: the last one that is committed."""

    first: int = 0
    last: int = 0

    def __str__(self) -> str:
        return f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"

    @classmethod
    def parse(cls, text: str) -> Steps:
        """Read `12`, `12-14` or `last`; raises ConfigError."""
        if text == LAST:
            return cls()
        first, _, last = text.partition("-")
        last = last or first
        if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
            raise ConfigError(f"'{text}' is no step; write a number, two with a dash between, or '{LAST}'")
        return cls(int(first), int(last))


@dataclass(frozen=True)
class Silent:
    """A peer of the pipeline that is not in the trace, and why."""

    peer: str
    reason: str


@dataclass(frozen=True)
class Trace:
    """What was found."""

    pipeline: str
    steps: Steps
    told: tuple[Told, ...]
    silent: tuple[Silent, ...]


async def collect(remote: Remote, steps: Steps, pipeline: str = "", clock: Clock = time.monotonic) -> Trace:
    """Ask all peers of the pipeline for these steps. Peers that do not answer are left out and named.

    The times of the spans are then those of the peers' clocks; `Told.offset` brings them to ours.

    Raises ConfigError for an unknown pipeline, StaleError for steps that nobody knows of, UnreachableError.
    """
    swarm = await remote.swarm()
    name = choose(swarm, pipeline)
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(_probe(peer, remote.beside(endpoint, CALL_SECONDS), name, clock))
            for peer, endpoint in members(swarm, name).items()
        ]
    answers = [task.result() for task in asked]
    probed = [answer for answer in answers if isinstance(answer, _Probed)]
    silent = [answer for answer in answers if isinstance(answer, Silent)]
    if not probed:
        raise UnreachableError(f"no peer of pipeline {name} answers: {'; '.join(one.reason for one in silent)}")
    wanted = resolve(steps, name, [answer.stages for answer in probed])
    async with asyncio.TaskGroup() as group:
        fetched = [group.create_task(_fetch(one, name, wanted)) for one in probed]
    answered = [task.result() for task in fetched]
    told = [answer for answer in answered if isinstance(answer, Told)]
    silent += [answer for answer in answered if isinstance(answer, Silent)]
    if not told:
        raise StaleError(f"{wanted} of pipeline {name}: forgotten just now; ask for '{LAST}'")
    return Trace(name, wanted, tuple(told), tuple(silent))


def choose(swarm: SwarmStatus, wanted: str) -> str:
    """The pipeline of that name, or the only one; raises ConfigError."""
    names = [line.pipeline for line in swarm.pipelines()]
    found = [name for name in names if name == wanted] or [name for name in names if name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if not names:
        raise ConfigError("there is no pipeline in this swarm; see distqatctl status")
    what = f"no pipeline '{wanted}'" if not found else "several pipelines; choose one with --pipeline"
    raise ConfigError(f"{what}: there are {', '.join(names)}")


def members(swarm: SwarmStatus, pipeline: str) -> dict[str, Endpoint]:
    """The trainer and the experts of a pipeline."""
    trainers = {
        peer.peer: peer.endpoint
        for peer in swarm.peers
        for role in peer.roles
        if any(line.pipeline == pipeline for line in role.pipelines)
    }
    seats = next(line.route for line in swarm.pipelines() if line.pipeline == pipeline)
    return {**trainers, **{str(seat.peer): seat.endpoint for seat in seats}}


def resolve(steps: Steps, pipeline: str, parts: Sequence[Sequence[StageTrace]]) -> Steps:
    """Which steps these are: those of the wanted ones that any peer has; raises StaleError when there are none."""
    newest = [max(part.newest for part in stages) for stages in parts if any(part.newest for part in stages)]
    if not newest:
        raise StaleError(f"no step of pipeline {pipeline} is committed yet")
    # The last that all have: who stands below is a moment behind.
    common, oldest = min(newest), min(part.oldest for stages in parts for part in stages if part.newest)
    if not steps.first:
        return Steps(common, common)
    if steps.first > max(newest) or steps.last < oldest:
        why = "not committed yet" if steps.first > max(newest) else "forgotten"
        raise StaleError(f"{steps} of pipeline {pipeline}: {why}; its peers know of {Steps(oldest, common)}")
    return Steps(max(steps.first, oldest), min(steps.last, max(newest)))


def report(trace: Trace, out: Path) -> None:
    """Write the trace, and say on the terminal where the time went."""
    tree = perfetto.trace(trace.pipeline, trace.told)
    try:
        out.write_text(json.dumps(tree))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None
    parts = [stage for one in trace.told for stage in one.stages if stage.spans]
    spans = sum(len(stage.spans) for stage in parts)
    apart = max(one.error for one in trace.told)
    console = Console(highlight=False)
    console.print(_table(parts))
    console.print(
        f"{trace.steps} of pipeline {trace.pipeline}: {spans} spans of {len(parts)} parts, clocks aligned within "
        f"{apart * 1e3:.1f} ms, are in {out}; open it at https://ui.perfetto.dev",
        soft_wrap=True,
    )
    for stage in parts:
        if stage.left_out:
            console.print(f"{stage.name}: {stage.left_out} spans are left out: too many, or forgotten", soft_wrap=True)
    for one in trace.silent:
        console.print(f"not in it: {short(one.peer)}: {one.reason}", style="yellow", soft_wrap=True)


@dataclass(frozen=True)
class _Probed:
    """A peer whose clock is known, with the steps that it has."""

    peer: str
    remote: Remote
    offset: float
    error: float
    stages: tuple[StageTrace, ...]


async def _probe(peer: str, remote: Remote, pipeline: str, clock: Clock) -> _Probed | Silent:
    best: tuple[float, float, TraceReply] | None = None
    try:
        for _ in range(PROBES):
            began = clock()
            reply = await remote.trace(pipeline, 0, 0, most=0)
            ended = clock()
            error = (ended - began) / 2
            if best is None or error < best[0]:
                best = error, reply.clock - (began + ended) / 2, reply
    except DistqatError as failure:
        return Silent(peer, failure.reason)
    assert best is not None
    if not best[2].stages:
        return Silent(peer, "has no part in this pipeline yet")
    return _Probed(peer, remote, best[1], best[0], best[2].stages)


async def _fetch(probed: _Probed, pipeline: str, steps: Steps) -> Told | Silent:
    try:
        reply = await probed.remote.trace(pipeline, steps.first, steps.last)
    except DistqatError as failure:
        return Silent(probed.peer, failure.reason)
    if not any(stage.spans for stage in reply.stages):
        return Silent(probed.peer, f"knows nothing of {steps}")
    return Told(probed.peer, probed.offset, probed.error, reply.stages)


def _table(parts: Sequence[StageTrace]) -> Table:
    columns = ("part", "seconds", "computing", "in a round", "waiting", "coding", "on the wire", "sent", "before codec")
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in sorted(parts, key=lambda part: part.stage):
        seconds = sum(step.end - step.begin for step in part.steps)
        times = [
            sum(getattr(step, name) for step in part.steps) for name in ("compute", "round", "wait", "codec", "wire")
        ]
        shares = [f"{time / seconds:.0%}" if seconds else "" for time in times]
        sent = size(sum(step.bytes for step in part.steps))
        table.add_row(part.name, f"{seconds:.4f}", *shares, sent, size(sum(step.raw for step in part.steps)))
    return table
