"""One outer round of siblings in processes of their own, beside hivemind's averager and gloo's all-reduce.

The round does more than an all-reduce: siblings find each other, agree on a group, vote, take the outer step, and
digest what they commit. So hivemind's peers take an outer step too, as DiLoCo on hivemind does; gloo does not.
Sizes and codecs take turns with their peers here; `killed` is about members that die, `roundlines` says what is to be
reached.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import psutil

from bench.averagers import Averagers, open_averagers
from bench.case import Case, Line, interleave
from bench.group import Group, open_group
from bench.hivemind import PeerError, enter_if_possible
from bench.killed import killed
from bench.machines import Machine, MachinesError, open_loopback, open_machines
from bench.roundlines import BESIDE, Found, Size, lines, together
from bench.runs import Run
from distqat.sections import RoundCodec, SyncSection

log = logging.getLogger(__name__)

CODECS: tuple[RoundCodec, ...] = ("none", "bf16", "int8", "int4", "int2")
BESIDE_GLOO: tuple[RoundCodec, ...] = ("none", "int8")
"""gloo does the same whatever our codec; two are enough to take turns with."""

MILLION = 1_000_000
TINY = 1000
"""Elements that are nothing to encode or to send."""

GIB = float(1 << 30)

PROCESS_BYTES = 0.35 * GIB
VECTORS = 10
"""Of one of our processes: own, anchor, momentum, gloo's, averages that are kept, and what a round needs."""
HIVEMIND_BYTES = 0.6 * GIB
"""Of one peer, all its processes; measured, as the number of vectors with two compressions."""
HIVEMIND_VECTORS = 8

WARM_UP = 4
"""Rounds of ours that come first and do not count, beside the one turn of everybody.

The averages of so many rounds are kept, and each takes memory of its own until the first is used again. Where the
system has to find that memory first, a round takes several times as long. hivemind's rounds are alike from the first.
"""

SLOW = Size(4, 10 * MILLION)
SLOW_BITS = 100e6

PATIENCE = 30.0
"""Seconds that siblings wait for each other at most: where eight share two cores, one may stand still for long."""

HUNDRED = 100
IN_A_ROW = Size(4, 10 * MILLION)


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    sizes: tuple[Size, ...]
    codecs: tuple[RoundCodec, ...]
    compressions: tuple[str, ...]
    """Of hivemind."""
    runs: int
    kills: int
    """Rounds with a killed member; with none of these, neither slow links nor a hundred rounds in a row."""


FULL = Plan(
    tuple(Size(siblings, elements) for elements in (10 * MILLION, 50 * MILLION) for siblings in (2, 4, 8)),
    CODECS,
    ("NONE", "FLOAT16", "UNIFORM_8BIT", "BLOCKWISE_8BIT"),
    5,
    3,
)
QUICK = Plan((Size(2, 10 * MILLION), Size(4, 10 * MILLION)), ("none", "int8"), ("NONE", "UNIFORM_8BIT"), 3, 0)


def settings(codec: RoundCodec) -> SyncSection:
    """Of a run that begins with DiLoCo proper."""
    return SyncSection(warmup_steps=0, codec=codec, max_wait=PATIENCE)


async def bench(quick: bool) -> AsyncIterator[Line]:
    """All sizes; then slow links, killed members, and a hundred rounds in a row."""
    plan = QUICK if quick else FULL
    async with open_loopback() as machine:
        for size in plan.sizes:
            machines = [machine] * size.siblings
            found = await _measure(size, machines, plan)
            for line in lines(size, found) if found is not None else ():
                yield line
        if not plan.kills:
            return
        for siblings in (4, 8):
            async for line in killed(Size(siblings, 10 * MILLION), machine, plan.kills):
                yield line
        async for line in _in_a_row(machine):
            yield line
    async for line in _over_slow_links(plan):
        yield line


async def _measure(size: Size, machines: Sequence[Machine], plan: Plan) -> Found | None:
    """Ours, gloo and hivemind in turns; hivemind after the others where they do not fit into memory together."""
    ours, theirs = need(size)
    available = float(psutil.virtual_memory().available)
    if max(ours, theirs) > available:
        log.warning("left out: %s takes %.1f GiB, and %.1f are free", size, max(ours, theirs) / GIB, available / GIB)
        return None
    is_together = ours + theirs <= available
    has_peers = bool(plan.compressions)
    found = Found()
    async with AsyncExitStack() as stack:
        hivemind = await enter_if_possible(stack, open_averagers(machines)) if is_together and has_peers else None
        group = await stack.enter_async_context(open_group(machines))
        await group.meet()
        if size.elements == min((one.elements for one in plan.sizes), default=0):
            found.forming = await _forming(group, plan.runs)
        for codec in plan.codecs:
            try:
                await _of_codec(size, codec, group, hivemind, plan, found)
            except PeerError as error:
                # It hangs now and then, and answers nothing any more; ours are measured without it.
                log.warning("%s, %s: hivemind is left out from here on: %s", size, codec, error)
                hivemind = None
                await _of_codec(size, codec, group, None, plan, found)
    if has_peers and not is_together:
        log.warning("%s: hivemind is measured after ours; they do not fit into memory together", size)
        await _alone(size, machines, plan, found)
    return found


async def _forming(group: Group, runs: int) -> list[Run]:
    """Rounds in which nothing but forming takes time."""
    await group.prepare(TINY, settings("none"))
    (found,) = await interleave(runs, group.round)
    return found


async def _of_codec(
    size: Size, codec: RoundCodec, group: Group, hivemind: Averagers | None, plan: Plan, found: Found
) -> None:
    found.errors[codec] = await group.error(size.elements, settings(codec))
    await group.prepare(size.elements, settings(codec))
    for _ in range(WARM_UP):
        await group.round()
    turns: dict[str, Callable[[], Awaitable[Run]]] = {"ours": group.round}
    if codec in BESIDE_GLOO:
        turns["gloo"] = group.all_reduce
    compressions = [name for name in BESIDE[codec] if name in plan.compressions] if hivemind is not None else []
    if hivemind is not None and compressions:
        await hivemind.prepare(size.elements, compressions)
        turns |= {name: partial(hivemind.round, name) for name in compressions}
    runs = dict(zip(turns, await interleave(plan.runs, *turns.values()), strict=True))
    found.ours[codec] = runs["ours"]
    if "gloo" in runs:
        found.gloo[codec] = runs["gloo"]
    for name in compressions:
        assert hivemind is not None
        found.hivemind[name] = runs[name]
        found.hivemind_errors[name] = await hivemind.error(name)


async def _alone(size: Size, machines: Sequence[Machine], plan: Plan, found: Found) -> None:
    """hivemind when ours are gone."""
    for name in plan.compressions:
        async with AsyncExitStack() as stack:
            hivemind = await enter_if_possible(stack, open_averagers(machines))
            if hivemind is None:
                return
            try:
                await hivemind.prepare(size.elements, [name])
                (found.hivemind[name],) = await interleave(plan.runs, partial(hivemind.round, name))
                found.hivemind_errors[name] = await hivemind.error(name)
            except PeerError as error:
                log.warning("%s: hivemind with %s is left out: %s", size, name, error)


async def _over_slow_links(plan: Plan) -> AsyncIterator[Line]:
    try:
        async with open_machines(SLOW.siblings, SLOW_BITS) as machines:
            found = await _measure(SLOW, machines, plan)
    except MachinesError as error:
        log.warning("left out: %s", error)
        return
    for line in lines(SLOW, found, is_slow=True) if found is not None else ():
        yield line


async def _in_a_row(machine: Machine) -> AsyncIterator[Line]:
    """A hundred rounds, one behind the other; ours, then hivemind's."""
    machines = [machine] * IN_A_ROW.siblings
    async with open_group(machines) as group:
        await group.prepare(IN_A_ROW.elements, settings("int8"))
        ours = [await group.round() for _ in range(HUNDRED)]
    peers: list[tuple[str, list[Run]]] = []
    async with AsyncExitStack() as stack:
        hivemind = await enter_if_possible(stack, open_averagers(machines))
        if hivemind is not None:
            await hivemind.prepare(IN_A_ROW.elements, ["UNIFORM_8BIT"])
            try:
                runs = [await hivemind.round("UNIFORM_8BIT") for _ in range(HUNDRED)]
                peers.append(("UNIFORM_8BIT", runs))
            except PeerError as error:
                log.warning("left out: %s", error)
    case = Case("round", f"{HUNDRED} rounds in a row, {IN_A_ROW}, int8: rounds that succeed", "share", "higher")
    for line in together(case, ours, peers):
        yield line


def need(size: Size) -> tuple[float, float]:
    """Bytes that our processes take at most, with gloo's part, and hivemind's."""
    vector = 4.0 * size.elements
    ours = size.siblings * (PROCESS_BYTES + VECTORS * vector)
    return ours, size.siblings * (HIVEMIND_BYTES + HIVEMIND_VECTORS * vector)
