"""One line of a bench: medians of several runs, ours beside the peer's, and whether the goal is met."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal, TypeVar

T = TypeVar("T")

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Line:
    """What is printed for a case. `ratio` is ours to the peer's, so that more is better."""

    bench: str
    case: str
    value: float
    unit: str
    better: Better
    peer: str | None
    peer_value: float | None
    ratio: float | None
    goal: str | None
    """In words: "value <= 0.5" or "ratio >= 0.8"; None where nothing is asked."""
    ok: bool
    """The goal is met, or there is none."""
    runs: int
    spread: float
    """Of our runs: (max - min) / median."""

    def to_json(self) -> str:
        """On one line, with four digits."""
        return json.dumps({key: _rounded(value) for key, value in asdict(self).items()})


Bench = Callable[[bool], AsyncIterator[Line]]
"""A whole bench: lines as they are measured; the flag asks for a quick one."""


@dataclass(frozen=True)
class Goal:
    """A bound for the value itself or for the ratio to the peer."""

    of: Literal["value", "ratio"]
    bound: float

    def words(self, better: Better) -> str:
        """As it is printed."""
        return f"{self.of} {'<=' if self._is_upper(better) else '>='} {self.bound:g}"

    def is_met(self, better: Better, value: float, ratio: float | None) -> bool:
        """Raises ValueError for a goal of a ratio that does not exist."""
        measured = value if self.of == "value" else ratio
        if measured is None:
            raise ValueError("a goal for the ratio to a peer that was not measured")
        return measured <= self.bound if self._is_upper(better) else measured >= self.bound

    def _is_upper(self, better: Better) -> bool:
        return self.of == "value" and better == "lower"


@dataclass(frozen=True)
class Case:
    """What is measured, in which unit, and beside whom."""

    bench: str
    case: str
    unit: str
    better: Better
    peer: str | None = None
    goal: Goal | None = None

    def line(self, ours: Sequence[float], peers: Sequence[float] = ()) -> Line:
        """From what was measured in each run."""
        value = median(ours)
        peer_value = median(peers) if peers else None
        ratio = None
        if peer_value is not None:
            more, less = (value, peer_value) if self.better == "higher" else (peer_value, value)
            ratio = more / less if less else None
        return Line(
            bench=self.bench,
            case=self.case,
            value=value,
            unit=self.unit,
            better=self.better,
            peer=self.peer,
            peer_value=peer_value,
            ratio=ratio,
            goal=self.goal.words(self.better) if self.goal is not None else None,
            ok=self.goal is None or self.goal.is_met(self.better, value, ratio),
            runs=len(ours),
            spread=(max(ours) - min(ours)) / abs(value) if value else 0.0,
        )


async def interleave(runs: int, *measures: Callable[[], Awaitable[T]]) -> list[list[T]]:
    """What each measures in each of the runs. They take turns, so that a busy machine is busy for all of them alike.

    One turn before the first run warms up and does not count.
    """
    results: list[list[T]] = [[] for _ in measures]
    for number in range(runs + 1):
        for measure, found in zip(measures, results, strict=True):
            result = await measure()
            if number:
                found.append(result)
    return results


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
