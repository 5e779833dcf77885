"""Sets of whole numbers as few intervals: what the ledger counts with. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Interval = tuple[int, int]
"""From begin up to, without, end."""


class IntervalSet:
    """A set of whole numbers, kept as sorted intervals that neither touch nor overlap."""

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        self._begins: list[int] = []  # Sorted; interval i is [begins[i], ends[i]).
        self._ends: list[int] = []
        for begin, end in intervals:
            self.add(begin, end)

    def __repr__(self) -> str:
        return f"<IntervalSet {' '.join(f'{begin}-{end}' for begin, end in self) or 'empty'}>"

    def __iter__(self) -> Iterator[Interval]:
        return iter(zip(self._begins, self._ends, strict=True))

    def __bool__(self) -> bool:
        return bool(self._begins)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._begins, number) - 1
        return place >= 0 and number < self._ends[place]

    @property
    def count(self) -> int:
        """How many numbers are in it."""
        return sum(self._ends) - sum(self._begins)

    def first(self) -> Interval:
        """The lowest interval; raises IndexError when empty."""
        return self._begins[0], self._ends[0]

    def overlap(self, begin: int, end: int) -> int:
        """How many numbers of [begin, end) are in it."""
        return sum(min(end, self._ends[i]) - max(begin, self._begins[i]) for i in self._meeting(begin, end))

    def add(self, begin: int, end: int) -> None:
        """Add [begin, end); numbers that are in it already stay."""
        if begin >= end:
            return
        # Intervals that touch are met too, so that neighbours become one.
        met = range(bisect_left(self._ends, begin), bisect_right(self._begins, end))
        if met:
            begin, end = min(begin, self._begins[met[0]]), max(end, self._ends[met[-1]])
        self._replace(met, [(begin, end)])

    def remove(self, begin: int, end: int) -> None:
        """Take [begin, end) out, as far as it is in it."""
        met = self._meeting(begin, end)
        if not met:
            return
        pieces = [(self._begins[met[0]], begin), (end, self._ends[met[-1]])]
        self._replace(met, [piece for piece in pieces if piece[0] < piece[1]])

    def _meeting(self, begin: int, end: int) -> range:
        """Places of the intervals that share a number with [begin, end)."""
        if begin >= end:
            return range(0)
        return range(bisect_right(self._ends, begin), bisect_left(self._begins, end))

    def _replace(self, places: range, intervals: list[Interval]) -> None:
        self._begins[places.start : places.stop] = [begin for begin, _ in intervals]
        self._ends[places.start : places.stop] = [end for _, end in intervals]
