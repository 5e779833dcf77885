"""`distqatctl sandbox --faults`: the whole of it, from the request to the scorecard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rich.console import Console

from distqat.cli.chaos.card import Books, FaultCard, Limits, Quality
from distqat.cli.chaos.crew import open_crew
from distqat.cli.chaos.schedule import Kind, schedule
from distqat.cli.chaos.storm import Course, last_evaluation, open_storm
from distqat.cli.chaos.watch import Watch
from distqat.cli.nursery.nursery import open_nursery
from distqat.cli.nursery.process import Starter
from distqat.cli.sandbox import Plan, run_baseline
from distqat.cli.scorecard import read_baseline
from distqat.errors import ConfigError, RemoteError
from distqat.rpc.loop import run

EPOCHS = 100_000
"""A budget that no run under faults comes to the end of: it is ended by time."""

EVALUATE_EVERY = 50
"""Steps of a pipeline, if the config says nothing: the last evaluation is what the run comes to."""

MEASURED_SHARE, MEASURED_SECONDS = 0.1, (3.0, 30.0)
"""Of the time of the faults, and the bounds of what is measured without them."""

BASELINE_FACTOR, BASELINE_SECONDS = 3.0, 300.0
"""What the baseline may take: so many times as long as the faults, and a while to start."""


@dataclass(frozen=True)
class Weather:
    """What is asked for beyond a plan."""

    wanted: Mapping[Kind, int]
    seed: int
    limits: Limits


def run_chaos(plan: Plan, weather: Weather) -> bool:
    """Run it, print the scorecard, and say whether it passed. Raises DistqatError."""
    if plan.pipelines < 2:
        raise ConfigError("--faults needs at least 2 pipelines: nobody else holds the state of a stage")
    console = Console(stderr=plan.as_json)
    course = course_of(plan, weather)
    plan = replace(plan, overrides=(*plan.overrides, *overrides_of(plan)))
    plan.clear()
    watch = Watch(plan.pipelines, plan.settings.model.stages * plan.pipelines)
    with open_nursery() as starter:
        card = run(_brave(plan, weather, course, watch, starter, console))
        if plan.has_baseline and not card.broke_off:
            card = _with_baseline(plan, card, watch.budget / EPOCHS, starter, console)
    Console().print(card.as_json() if plan.as_json else card.render(), soft_wrap=plan.as_json)
    return card.passed


def course_of(plan: Plan, weather: Weather) -> Course:
    """What is to happen. Raises ConfigError if the faults do not fit into the time."""
    settings, daemons = plan.settings, 1 + plan.experts
    faults = schedule(weather.wanted, plan.seconds, weather.seed, daemons, settings.lease.min)
    low, high = MEASURED_SECONDS
    measured = min(max(plan.seconds * MEASURED_SHARE, low), high)
    return Course(faults, plan.seconds, measured, settings.sync.warmup_steps, 2 * weather.limits.recovery)


def overrides_of(plan: Plan) -> tuple[str, ...]:
    """Settings of a run that is ended by time: a rate that follows the progress would never move in it."""
    every = plan.settings.train.evaluate_every or EVALUATE_EVERY
    return f"train.epochs={EPOCHS}", f"train.evaluate_every={every}", "optimizer.schedule=constant"


def _with_baseline(plan: Plan, card: FaultCard, epoch: float, starter: Starter, console: Console) -> FaultCard:
    """Beside one process that trains on as many samples; an epoch has so many."""
    samples = card.books.samples
    console.print(f"training the baseline: {samples} samples in one process, without faults")
    overrides = (*plan.overrides, f"train.epochs={samples / epoch}", "train.evaluate_every=0")
    alone = replace(plan, overrides=overrides, seconds=BASELINE_FACTOR * plan.seconds + BASELINE_SECONDS)
    try:
        return card.beside(read_baseline(run_baseline(alone, starter)))
    except RemoteError as error:
        return replace(card, broke_off=error.reason)


async def _brave(
    plan: Plan, weather: Weather, course: Course, watch: Watch, starter: Starter, console: Console
) -> FaultCard:
    """All of it but the baseline."""
    head = ["--role", "monitor", "--role", "client", *plan.arguments()]
    has_cuts = Kind.CUT in weather.wanted
    async with open_crew(plan.folder, head, starter, has_cuts, plan.settings.daemon.drain_timeout) as crew:
        await crew.launch(f"expert-{number}" for number in range(plan.experts))
        watch.staffed(plan.experts)
        async with open_storm(crew, watch, course, console) as storm:
            await storm.rage()
    books = Books(watch.committed, watch.lost, watch.doubled, watch.replays, watch.skipped)
    quality = Quality(*last_evaluation(storm.evaluations))
    return FaultCard(
        weather.seed,
        weather.limits,
        weather.wanted,
        watch.wounds,
        storm.spans,
        books,
        watch.digests,
        quality,
        storm.broke_off,
    )
