"""Pipelines of two and three stages beside the same model in one process, and beside hivemind's remote experts.

Experts and trainer are processes of their own, as in a swarm. The bound is that of 1F1B (Narayanan et al. 2021) for
stages of unequal cost: with M microbatches and a largest stage that has the share p of the work, a step takes at least
1 + (M - 1) p times as long as a microbatch in one process; for S equal stages that is the well-known M / (M + S - 1) of
S times the speed. What S processes reach side by side on this machine is measured too, since cores that are busy, or
share a memory bus, are no fault of a pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

from bench import heavy
from bench.case import Case, Goal, Line, interleave
from bench.chain import COMPRESSIONS, open_chain
from bench.gauge import Gauge, Reached, Runs
from bench.hivemind import enter_if_possible
from bench.machines import open_loopback
from bench.ours import MICROBATCHES, Form, open_ours
from bench.recipes import GPT, RECIPES, RESNET, Recipe, least_bytes
from bench.whole import open_whole
from bench.workers import Worker, open_worker

FORMS = (Form("none"), Form("int8"))
BOUND = Goal("ratio", 0.85)
BESIDE_HIVEMIND = Goal("ratio", 3.0)
HEADERS = Goal("ratio", 0.98)
"""Headers take no more than a fiftieth."""

KILO = 1e3
SECONDS = 0.7
"""That one process works in one run; the steps of a run follow from it."""

RUNS = 9
QUICK_RUNS = 2


async def bench(quick: bool) -> AsyncIterator[Line]:
    """Each model in two and in three stages; quickly, the realistic one and the hard one in two."""
    cases = [(GPT, 2), (RESNET, 2)] if quick else [(recipe, stages) for recipe in RECIPES for stages in (2, 3)]
    for recipe, stages in cases:
        for line in await _lines(recipe, stages, QUICK_RUNS if quick else RUNS):
            yield line
    yield await heavy.line(quick)


@dataclass(frozen=True)
class Measured:
    """The runs of everything that took turns."""

    share: float
    """Of the work, in the largest stage."""
    threads: Runs
    """One process, with a thread for each stage."""
    together: Runs
    """A process with one thread for each stage, each with the whole model."""
    ours: dict[Form, Runs]
    hivemind: dict[str, Runs]
    """By compression; empty where it cannot be had."""


async def _lines(recipe: Recipe, stages: int, runs: int) -> list[Line]:
    async with AsyncExitStack() as stack:
        measured = await _measure(stack, recipe, stages, runs)
    name = f"{recipe}, M={MICROBATCHES}, S={stages}"
    return [line for form in FORMS for line in of_form(name, recipe, stages, form, measured)]


async def _measure(stack: AsyncExitStack, recipe: Recipe, stages: int, runs: int) -> Measured:
    machines = [await stack.enter_async_context(open_loopback())] * stages
    several = await stack.enter_async_context(_whole(recipe, stages))
    wholes = [await stack.enter_async_context(_whole(recipe, 1)) for _ in range(stages)]
    ours = await stack.enter_async_context(open_ours(recipe, FORMS, machines))
    chain = await enter_if_possible(stack, open_chain(recipe, machines))
    steps = await wholes[0].ask("steps_in", SECONDS)
    turns: dict[object, Callable[[], Awaitable[Reached]]] = {
        "threads": partial(_together, [several], recipe, steps),
        "together": partial(_together, wholes, recipe, steps),
        **{form: partial(ours.train, form, steps) for form in FORMS},
    }
    if chain is not None:
        for compression in COMPRESSIONS:
            turns[compression] = partial(chain.train, compression, await chain.steps_in(SECONDS, compression))
    found = dict(zip(turns, await interleave(runs, *turns.values()), strict=True))
    return Measured(
        share=await wholes[0].ask("largest_share", stages),
        threads=found["threads"],
        together=found["together"],
        ours={form: found[form] for form in FORMS},
        hivemind={name: found[name] for name in COMPRESSIONS if name in found},
    )


def _whole(recipe: Recipe, threads: int) -> AbstractAsyncContextManager[Worker]:
    return open_worker(f"{threads} threads", open_whole, recipe, MICROBATCHES, threads)


async def _together(wholes: Sequence[Worker], recipe: Recipe, steps: int) -> Reached:
    """As many steps in each of the processes at once."""
    samples = steps * recipe.samples
    gauge = Gauge([], [whole.pid for whole in wholes])

    async def work() -> float:
        took = await asyncio.gather(*(whole.ask("train", steps) for whole in wholes))
        return 1.0 / float(sum(1 / seconds for seconds in took))

    reached = await gauge.measure(samples, work)
    return replace(reached, cpu=reached.cpu / len(wholes))


def of_form(name: str, recipe: Recipe, stages: int, form: Form, measured: Measured) -> Iterator[Line]:
    """The lines of one way to travel."""
    ours, is_aim = measured.ours[form], form.codec == "int8"
    case = partial(Case, "pipeline")
    name = f"{name}, {form}"
    filled = MICROBATCHES * measured.share / (1 + (MICROBATCHES - 1) * measured.share)  # Of the largest stage's time.
    bound = filled / measured.share / stages
    side_by_side = f"{bound:.2f} x {stages} processes side by side (1F1B; largest stage {measured.share:.0%})"
    yield case(name, "samples/s", "higher", f"one process, {stages} threads").line(
        _rates(ours), _rates(measured.threads)
    )
    goal = BOUND if is_aim and stages == 2 else None
    yield case(f"{name}: bound", "samples/s", "higher", side_by_side, goal).line(
        _rates(ours), [bound * run.rate for run in measured.together]
    )
    if is_aim:
        busy, cpu = [run.busy for run in ours], [run.cpu for run in ours]
        yield case(f"{name}: busiest stage", "share of time", "higher", "1F1B", goal).line(busy, [filled])
        yield case(f"{name}: CPU", "s/1000 samples", "lower", "one process, 1 thread").line(
            cpu, [run.cpu for run in measured.together]
        )
    least = f"{2 * (stages - 1)} encoded activations, the inputs and the targets, computed"
    yield case(f"{name}: messages", "KB/sample", "lower", least, HEADERS).line(
        [run.messages / KILO for run in ours], [least_bytes(recipe, stages, form.codec) / KILO]
    )
    for compression, runs in measured.hivemind.items():
        beside = BESIDE_HIVEMIND if is_aim else None
        yield case(f"{name}: hivemind", "samples/s", "higher", f"hivemind, {compression}", beside).line(
            _rates(ours), _rates(runs)
        )
    if "UNIFORM_8BIT" in measured.hivemind and is_aim:
        runs = measured.hivemind["UNIFORM_8BIT"]
        yield case(f"{name}: on the interface", "KB/sample", "lower", "hivemind, UNIFORM_8BIT").line(
            [run.wire / KILO for run in ours], [run.wire / KILO for run in runs]
        )


def _rates(runs: Runs) -> list[float]:
    return [run.rate for run in runs]
