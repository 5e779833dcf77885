"""What a sandbox run comes to, beside the same training in one process."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from distqat.cli.show import size
from distqat.config import Settings
from distqat.errors import RemoteError
from distqat.roles.status import SwarmStatus

GOALS: Mapping[str, float] = {"digits": 0.95}
"""Held-out accuracy that a run on this source has to reach."""

TOLERANCE = 0.02
"""How far the swarm's metric may lie behind the baseline's: absolute for accuracy, relative for losses."""


@dataclass(frozen=True)
class Baseline:
    """One-process training of the same model on the same data."""

    metric: str
    value: float
    samples_per_second: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class Scorecard:
    """What is compared, and the verdict."""

    pipelines: int
    steps: int
    rounds: int
    metric: str
    evaluation: float
    baseline: float
    samples_per_second: float
    baseline_samples_per_second: float
    seconds: float
    bytes_by_flow: Mapping[str, int]
    digests_equal: bool
    stages_compared: int
    samples: int
    samples_lost: int
    samples_doubled: int
    samples_skipped: int
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing fell short."""
        return not self.failures

    @classmethod
    def of(cls, settings: Settings, swarm: SwarmStatus, seconds: float, baseline: Baseline | None) -> Scorecard:
        """From the last status of a finished swarm."""
        run, lines = swarm.run(), swarm.pipelines()
        if run is None or not lines:
            raise RemoteError("the swarm's last status shows no run and no pipeline")
        traffic: Counter[str] = Counter()
        for peer in swarm.peers:
            traffic.update({count.flow: count.sent for count in peer.traffic})
        stages, digests_equal = _compare_digests(swarm)
        metric = baseline.metric if baseline is not None else "evaluation"
        worst = min if metric in ("accuracy", "evaluation") else max
        card = cls(
            pipelines=len(lines),
            steps=sum(line.step for line in lines),
            rounds=max((expert.round for _, expert in swarm.experts()), default=0),
            metric=metric,
            evaluation=worst((line.evaluation for line in lines), default=math.nan),
            baseline=baseline.value if baseline is not None else math.nan,
            samples_per_second=_training_rate(swarm),
            baseline_samples_per_second=baseline.samples_per_second if baseline is not None else math.nan,
            seconds=seconds,
            bytes_by_flow=dict(sorted(traffic.items())),
            digests_equal=digests_equal,
            stages_compared=stages,
            samples=run.committed,
            samples_lost=run.lost + run.budget - run.committed - run.skipped,
            samples_doubled=run.doubled,
            samples_skipped=run.skipped,
        )
        return dataclasses.replace(card, failures=tuple(card._shortcomings(settings)))

    def as_json(self) -> str:
        """One JSON object; numbers that are not there are null."""
        tree = {**dataclasses.asdict(self), "passed": self.passed}
        return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in tree.items()})

    def render(self) -> Table:
        """For people."""
        table = Table(title="scorecard", show_header=True, header_style="dim")
        for column in ("", "swarm", "one process"):
            table.add_column(column)
        table.add_row("pipelines", str(self.pipelines), "")
        table.add_row("steps, all pipelines", str(self.steps), "")
        table.add_row("outer rounds", str(self.rounds), "")
        table.add_row(f"held-out {self.metric}", _shown(self.evaluation, ".4f"), _shown(self.baseline, ".4f"))
        rates = (_shown(rate, ".0f") for rate in (self.samples_per_second, self.baseline_samples_per_second))
        table.add_row("samples/s", *rates)
        for flow, count in self.bytes_by_flow.items():
            table.add_row(f"sent by {flow}", size(count), "")
        equal = f"{'yes' if self.digests_equal else 'no'} ({self.stages_compared} stages compared)"
        table.add_row("anchor digests equal", equal, "")
        table.add_row("samples trained", str(self.samples), "")
        table.add_row("samples lost, doubled", f"{self.samples_lost}, {self.samples_doubled}", "")
        if self.samples_skipped:
            table.add_row("samples skipped: training on them fails", str(self.samples_skipped), "")
        table.add_row("seconds, start to end", f"{self.seconds:.1f}", "")
        table.add_row("verdict", "passed" if self.passed else "; ".join(self.failures), "")
        return table

    def _shortcomings(self, settings: Settings) -> list[str]:
        """In words, what fell short."""
        found = []
        goal = GOALS.get(settings.data.source)
        if goal is not None and not self.evaluation >= goal:
            found.append(f"{self.metric} {self.evaluation:.4f} is below {goal}")
        if math.isfinite(self.baseline) and not self._is_near_baseline():
            found.append(f"{self.metric} {self.evaluation:.4f} is too far from the baseline's {self.baseline:.4f}")
        if not self.digests_equal:
            found.append("anchor digests are not equal")
        if self.pipelines > 1 and not self.stages_compared:
            found.append("no digests could be compared")
        if self.samples_lost or self.samples_doubled:
            found.append(f"{self.samples_lost} samples lost, {self.samples_doubled} doubled")
        if self.samples_skipped:
            found.append(f"{self.samples_skipped} samples skipped")
        return found

    def _is_near_baseline(self) -> bool:
        if self.metric == "accuracy":
            return self.evaluation >= self.baseline - TOLERANCE
        return self.evaluation <= self.baseline * (1 + TOLERANCE)


def read_baseline(output: str) -> Baseline:
    """From the JSON object that `distqatd --local` prints last. Raises RemoteError."""
    try:
        return Baseline(**json.loads(output.strip().splitlines()[-1]))
    except (ValueError, TypeError, IndexError) as error:
        raise RemoteError(f"the baseline printed no result: {error}") from None


def _compare_digests(swarm: SwarmStatus) -> tuple[int, bool]:
    """How many stages have siblings to compare, and whether all siblings of each have equal digests."""
    by_stage: dict[int, list[str]] = {}
    for _, expert in swarm.experts():
        if expert.seated:
            by_stage.setdefault(expert.stage, []).append(f"{expert.round}:{expert.digest}")
    compared = [digests for digests in by_stage.values() if len(digests) > 1]
    return len(compared), all(len(set(digests)) == 1 for digests in compared)


def _training_rate(swarm: SwarmStatus) -> float:
    """Samples per second of all pipelines together, over their time in training."""
    return sum(line.samples_per_second for line in swarm.pipelines())


def _shown(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""
