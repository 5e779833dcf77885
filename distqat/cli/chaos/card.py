"""What a run under faults comes to, and the verdict. Pure.

docs/chaos.md explains every key of the JSON object.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table

from distqat.cli.chaos.schedule import Kind
from distqat.cli.chaos.watch import Digests, Span, Wound, percentile
from distqat.cli.scorecard import TOLERANCE, Baseline


@dataclass(frozen=True)
class Limits:
    """What a run has to hold."""

    keep: float
    """Share of the fault-free throughput, over the time of the peers that were there."""
    recovery: float
    """Seconds after which everything trains again, whatever the fault."""


@dataclass(frozen=True)
class Spans:
    """The three parts of a run."""

    before: Span = field(default_factory=Span)
    """Warm, and without a fault."""
    during: Span = field(default_factory=Span)
    """From the first fault's turn until all have recovered."""
    after: Span = field(default_factory=Span)
    """Everybody is back."""

    @property
    def clean_rate(self) -> float:
        """Samples per second without faults: the better of both, since a swarm that has just begun may still gain
        speed. nan if nothing was measured."""
        return max((rate for rate in (self.before.rate, self.after.rate) if rate > 0), default=math.nan)


@dataclass(frozen=True)
class Books:
    """What the client's ledger came to."""

    samples: int = 0
    lost: int = 0
    doubled: int = 0
    replays: int = 0
    """Routes that opened with batches which an earlier route had left open."""
    skipped: int = 0
    """Samples given up, because training on them fails."""


@dataclass(frozen=True)
class Quality:
    """What was learned: held-out metric of the swarm, and of one process on as many samples."""

    metric: str = ""
    swarm: float = math.nan
    baseline: Baseline | None = None

    def __str__(self) -> str:
        beside = f", {self.baseline.value:.4f} in one process" if self.baseline is not None else ""
        return f"{self.metric} {self.swarm:.4f}{beside}"

    @property
    def is_near(self) -> bool:
        """Whether the swarm is about as good; a swarm that nothing is compared with is."""
        if self.baseline is None:
            return True
        if self.metric == "accuracy":
            return self.swarm >= self.baseline.value - TOLERANCE
        return self.swarm <= self.baseline.value * (1 + TOLERANCE)


@dataclass(frozen=True)
class FaultCard:
    """What was asked for, what happened, and the verdict."""

    seed: int
    limits: Limits
    asked: Mapping[Kind, int]
    wounds: Sequence[Wound]
    spans: Spans
    books: Books
    digests: Digests
    quality: Quality
    broke_off: str = ""
    """Why the run ended early; empty: it did not."""

    @property
    def kept(self) -> float:
        """Samples committed under faults, of those that the same peers commit without; nan if nothing was measured."""
        expected = self.spans.clean_rate * self.spans.during.available
        return self.spans.during.samples / expected if expected > 0 else math.nan

    @property
    def kept_of_all(self) -> float:
        """The same as if nobody had been away."""
        expected = self.spans.clean_rate * self.spans.during.seconds
        return self.spans.during.samples / expected if expected > 0 else math.nan

    @property
    def injected(self) -> Mapping[Kind, int]:
        """Faults by kind, as they were carried out."""
        return Counter(wound.fault.kind for wound in self.wounds)

    @property
    def passed(self) -> bool:
        """Whether nothing fell short."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """In words, what fell short."""
        limits, books = self.limits, self.books
        slow = [w for w in self.wounds if not w.recovery <= limits.recovery]
        found = [self.broke_off] if self.broke_off else []
        found += [f"asked for {n} x {kind}, injected {self.injected[kind]}" for kind, n in self.not_injected()]
        found += [f"fault {w.fault.number} ({w.label}) did not recover in {limits.recovery:g} s" for w in slow]
        if not self.kept >= limits.keep:
            found.append(f"throughput kept is {self.kept:.3f}, below {limits.keep:g}")
        if books.lost or books.doubled:
            found.append(f"{books.lost} samples lost, {books.doubled} doubled")
        if books.skipped:
            found.append(f"{books.skipped} samples skipped")
        if not self.digests.compared:
            found.append("no digests could be compared")
        found += [f"digests of {name} are not equal" for name in self.digests.unequal]
        if not self.quality.is_near:
            found.append(f"{self.quality} are too far apart")
        return found

    def not_injected(self) -> list[tuple[Kind, int]]:
        """Kinds of which not as many faults came as were asked for, with how many were."""
        return [(kind, self.asked.get(kind, 0)) for kind in Kind if self.asked.get(kind, 0) != self.injected[kind]]

    def recoveries(self) -> Mapping[str, Mapping[str, float]]:
        """Seconds by kind of fault; those of spares apart, since nothing breaks."""
        by_label: dict[str, list[float]] = {}
        for wound in self.wounds:
            by_label.setdefault(wound.label, []).append(wound.recovery)
        return {label: _statistics(values) for label, values in sorted(by_label.items())}

    def as_json(self) -> str:
        """One JSON object; numbers that are not there are null."""
        quality, spans = self.quality, self.spans
        tree = {
            "passed": self.passed,
            "failures": self.failures,
            "seed": self.seed,
            "asked": {str(kind): number for kind, number in self.asked.items()},
            "injected": {str(kind): number for kind, number in self.injected.items()},
            "faults": [_fault(wound) for wound in self.wounds],
            "recovery_seconds": self.recoveries(),
            "samples_per_second": {n: getattr(spans, n).rate for n in ("before", "during", "after")},
            "seconds": {n: getattr(spans, n).seconds for n in ("before", "during", "after")},
            "throughput_kept": self.kept,
            "throughput_kept_of_all": self.kept_of_all,
            "replays": self.books.replays,
            "samples": self.books.samples,
            "samples_lost": self.books.lost,
            "samples_doubled": self.books.doubled,
            "samples_skipped": self.books.skipped,
            "digests_compared": self.digests.compared,
            "digests_unequal": len(self.digests.unequal),
            "rounds_died": self.digests.died,
            "metric": quality.metric,
            "evaluation": quality.swarm,
            "baseline": quality.baseline.value if quality.baseline is not None else None,
        }
        return json.dumps(_finite(tree))

    def render(self) -> Table:
        """For people."""
        table = Table(title="scorecard", show_header=False)
        asked = ", ".join(f"{number} {kind}" for kind, number in self.asked.items())
        table.add_row("faults asked for", asked)
        table.add_row(
            "faults injected", ", ".join(f"{number} {kind}" for kind, number in sorted(self.injected.items()))
        )
        for label, values in self.recoveries().items():
            shown = "  ".join(f"{name} {values[name]:.2f}" for name in ("p50", "p95", "p99"))
            table.add_row(f"seconds to recover, {label}", f"{shown}  of {values['count']:.0f}")
        rates = (self.spans.before, self.spans.during, self.spans.after)
        table.add_row("samples/s before, under, after faults", "  ".join(f"{span.rate:.0f}" for span in rates))
        table.add_row("throughput kept, of peers that were there", f"{self.kept:.3f}")
        table.add_row("throughput kept, of all", f"{self.kept_of_all:.3f}")
        table.add_row("batches replayed", str(self.books.replays))
        table.add_row("samples trained", str(self.books.samples))
        table.add_row("samples lost, doubled", f"{self.books.lost}, {self.books.doubled}")
        if self.books.skipped:
            table.add_row("samples skipped: training on them fails", str(self.books.skipped))
        table.add_row("digests compared, unequal", f"{self.digests.compared}, {len(self.digests.unequal)}")
        if self.digests.died:
            table.add_row("rounds that died with the only one who told of them", str(self.digests.died))
        quality = self.quality
        if math.isfinite(quality.swarm):
            table.add_row("held out", str(quality))
        table.add_row("verdict", "passed" if self.passed else "; ".join(self.failures))
        return table

    def beside(self, baseline: Baseline) -> FaultCard:
        """The same card with what one process came to."""
        return replace(self, quality=replace(self.quality, baseline=baseline))


def _statistics(values: Sequence[float]) -> Mapping[str, float]:
    """Of those that recovered; how many there are counts all."""
    known = [value for value in values if math.isfinite(value)]
    shares = {f"p{share}": percentile(known, share / 100) for share in (50, 95, 99)}
    return {"count": len(values), **shares, "longest": max(known, default=math.nan)}


def _fault(wound: Wound) -> Mapping[str, Any]:
    fault = wound.fault
    kind = {"number": fault.number, "kind": str(fault.kind), "silent": fault.is_silent, "label": wound.label}
    place = {"victim": wound.victim, "stage": wound.stage, "planned": fault.at, "at": wound.at}
    return {**kind, **place, "away": wound.healed - wound.at, "recovery": wound.recovery}


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
