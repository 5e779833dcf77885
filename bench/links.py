"""Pipelines over slow links: each stage on a machine of its own, the trainer on that of stage 0; beside hivemind.

The machines are network namespaces whose cables let through 1 Gbit/s, 100 Mbit/s or 20 Mbit/s (`bench/machines.py`).
hivemind's client is where our trainer is, so its calls to the first stage are as free as ours.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

from bench.case import Case, Goal, Line, interleave
from bench.chain import COMPRESSIONS, open_chain
from bench.gauge import Reached, Runs
from bench.hivemind import enter_if_possible
from bench.machines import Machine, MachinesError, open_machines
from bench.ours import MICROBATCHES, Form, open_ours
from bench.recipes import GPT, RESNET, Recipe

log = logging.getLogger(__name__)

FORMS = (Form("none"), Form("int8"), Form("int8", "auto"))
AIM = Form("int8")
MEGABITS = (1000, 100, 20)
AIM_MEGABITS = 100
BESIDE_HIVEMIND = Goal("ratio", 10.0)

STEPS = 3
"""Of ours in one run; hivemind makes one, which takes about as long."""
RUNS = 3
QUICK_RUNS = 1
KILO = 1e3


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Two models over each link; quickly, the one with small compute over the middle one."""
    cases = [(RESNET, 2)] if quick else [(RESNET, 2), (RESNET, 3), (GPT, 2), (GPT, 3)]
    for megabits in (AIM_MEGABITS,) if quick else MEGABITS:
        for recipe, stages in cases:
            try:
                async with open_machines(stages, megabits * 1e6) as machines:
                    found = await _measure(recipe, machines, QUICK_RUNS if quick else RUNS)
            except MachinesError as error:
                log.warning("left out: %s", error)
                return
            name = f"{megabits} Mbit/s, {recipe}, M={MICROBATCHES}, S={stages}"
            for line in lines(name, found, BESIDE_HIVEMIND if megabits == AIM_MEGABITS else None):
                yield line


async def _measure(recipe: Recipe, machines: Sequence[Machine], runs: int) -> Mapping[Form | str, Runs]:
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(open_ours(recipe, FORMS, machines))
        chain = await enter_if_possible(stack, open_chain(recipe, machines))
        turns: dict[Form | str, Callable[[], Awaitable[Reached]]] = {
            form: partial(ours.train, form, STEPS) for form in FORMS
        }
        if chain is not None:
            turns |= {compression: partial(chain.train, compression, 1) for compression in COMPRESSIONS}
        return dict(zip(turns, await interleave(runs, *turns.values()), strict=True))


def lines(name: str, found: Mapping[Form | str, Runs], goal: Goal | None) -> Iterator[Line]:
    """From the runs of each form, and of each compression of hivemind where it was there."""
    for form in FORMS:
        rates = [run.rate for run in found[form]]
        for compression in COMPRESSIONS:
            peers = [run.rate for run in found.get(compression, [])]
            peer = f"hivemind, {compression}" if peers else None
            case = Case(
                "links", f"{name}, {form}", "samples/s", "higher", peer, goal if form == AIM and peers else None
            )
            yield case.line(rates, peers)
            if not peers:
                break
    for form in FORMS:
        peers = [run.wire / KILO for run in found.get("UNIFORM_8BIT", [])]
        peer = "hivemind, UNIFORM_8BIT" if peers else None
        case = Case("links", f"{name}, {form}: through the cables", "KB/sample", "lower", peer)
        yield case.line([run.wire / KILO for run in found[form]], peers)
