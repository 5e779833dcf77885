"""Of which steps of the pipelines books know which samples they took: without a gap up to where. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from distqat.data.intervals import IntervalSet

Span = tuple[str, int, int]
"""Pipeline, its first step and the one after its last."""


class KnownSteps:
    """Steps by pipeline. A pipeline that came out of a checkpoint has its first step there, not at 1."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._steps: dict[str, IntervalSet] = {}
        for pipeline, begin, end in spans:
            self.add(pipeline, begin, end)

    def __repr__(self) -> str:
        return f"<KnownSteps {self._steps}>"

    def __iter__(self) -> Iterator[Span]:
        return iter((name, begin, end) for name, steps in self._steps.items() for begin, end in steps)

    def add(self, pipeline: str, begin: int, end: int) -> None:
        """Those from begin up to, without, end."""
        self._steps.setdefault(pipeline, IntervalSet()).add(begin, end)

    def reaches(self, pipeline: str, step: int) -> bool:
        """Whether they know of that step, and of all before it."""
        steps = self._steps.get(pipeline)
        return step <= 0 or (bool(steps) and steps is not None and step < steps.first()[1])

    def cut(self, steps: Mapping[str, int]) -> None:
        """Forget what is after these steps; other pipelines at all."""
        kept = [(name, begin, min(end, steps.get(name, 0) + 1)) for name, begin, end in self]
        self._steps.clear()
        for name, begin, end in kept:
            if begin < end:
                self.add(name, begin, end)
