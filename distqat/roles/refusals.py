"""When a step that fails is given up instead of replayed, and when a run whose steps all fail is. Pure.

A batch may be bad: the same error comes again wherever and whenever it is tried. Then its samples are skipped, counted
and told of, and the pipeline goes on. If one batch after the other fails so, it is not the batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FAILURES: Mapping[str, int] = {"TensorError": 3, "DataError": 3, "ComputeError": 4, "MemoryShortError": 4}
"""By kind of error: how often a step must fail in the same way to be given up. What comes from the network is not here.
A device's own error is tried once more than an expert keeps its seat for it (`FAULTS`), so that another device may."""

MOST_REFUSED = 3
"""Batches in a row that a pipeline gives up, with no step committed in between; then it is given up itself."""

MOST_FAILED = 2
"""Pipelines that are given up with nothing committed in between; then the run has failed."""


@dataclass(frozen=True)
class Failure:
    """A route broke while a step was under way: what was said of it, and of which claim the step was."""

    claim: int
    kind: str
    stage: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.stage}: {self.reason}"


class Doubts:
    """What one pipeline's trainer remembers of steps that failed."""

    def __init__(self) -> None:
        self._failure: Failure | None = None  # The last one; None after a commit.
        self._times = 0  # That it came in the same way.
        self._refused = 0  # Batches that were given up since the last commit.

    def __repr__(self) -> str:
        return f"<Doubts {self._failure or 'none'}, {self._times} times, {self._refused} refused>"

    def failed(self, failure: Failure) -> bool:
        """A step failed; whether from now on only one may be under way, so that it is known which one it is."""
        self._times = self._times + 1 if failure == self._failure else 1
        self._failure = failure
        return failure.kind in FAILURES

    def committed(self) -> None:
        """A step was committed."""
        self._failure, self._times, self._refused = None, 0, 0

    def why_refuse(self) -> str:
        """Why the first batch that is not committed is given up; empty while it is tried again."""
        if self._failure is None or self._times < FAILURES.get(self._failure.kind, self._times + 1):
            return ""
        return f"failed {self._times} times in the same way: {self._failure}"

    def refused(self) -> bool:
        """It was given up; whether the pipeline has to be, too."""
        self._failure, self._times = None, 0
        self._refused += 1
        return self._refused >= MOST_REFUSED


@dataclass
class Hopes:
    """What the client remembers of pipelines that were given up."""

    _failed: dict[str, str] = field(default_factory=dict)  # Since the last commit, by pipeline: why.
    _committed: int = 0  # Samples, when the first of them was.

    def why_hopeless(self, failed: Mapping[str, str], committed: int) -> str:
        """Why the run cannot go on; empty while it may. `failed`: the pipelines that now say that they gave up."""
        if committed != self._committed:
            self._failed.clear()
            self._committed = committed
        self._failed |= failed
        if len(self._failed) < MOST_FAILED:
            return ""
        return f"the run has failed: every step fails, lately of pipeline {_last(self._failed)}"


def _last(failed: Mapping[str, str]) -> str:
    name = list(failed)[-1]
    return f"{name}: {failed[name]}"
