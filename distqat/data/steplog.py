"""Which committed samples were of which step, as far back as a checkpoint may want to know. Pure.

Books that are to go back to an earlier moment of the run need it: what was committed after that moment is to be trained
on again. Steps that every checkpoint has are forgotten, and of all others the oldest, if they become too many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from distqat.errors import StateError

MOST_STEPS = 1 << 14
"""Steps that are remembered; those before them count as committed for good."""

Entry = tuple[str, int, int, int]
"""Pipeline, step, begin and end of its samples in the run's order."""


class StepLog:
    """Steps in the order in which they were booked."""

    def __init__(self, most: int = MOST_STEPS) -> None:
        self._entries: deque[Entry] = deque(maxlen=most)
        self._texts: deque[str] = deque(maxlen=most)  # The same, as they are written; each is made once.

    def __repr__(self) -> str:
        return f"<StepLog {len(self._entries)} steps>"

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, pipeline: str, step: int, begin: int, end: int) -> None:
        """The samples of a step are committed; a claim that is cut in two is two entries."""
        self._entries.append((pipeline, step, begin, end))
        self._texts.append(f"{pipeline} {step} {begin} {end}")

    def keep(self, entries: list[Entry]) -> None:
        """These, in their order, and no others."""
        self._entries.clear()
        self._texts.clear()
        for entry in entries:
            self.add(*entry)

    def forget(self, steps: Mapping[str, int]) -> None:
        """Of each pipeline the steps up to this one."""
        if any(step <= steps.get(pipeline, 0) for pipeline, step, _, _ in self._entries):
            self.keep([entry for entry in self._entries if entry[1] > steps.get(entry[0], 0)])

    def to_text(self) -> str:
        """As it is written."""
        return ";".join(self._texts)

    @classmethod
    def of(cls, text: str) -> StepLog:
        """What `to_text` wrote. Raises StateError."""
        log = cls()
        for line in text.split(";") if text else ():
            try:
                pipeline, step, begin, end = line.split(" ")
                log.add(pipeline, int(step), int(begin), int(end))
            except ValueError:
                raise StateError(f"they speak of a step '{line[:60]}'") from None
        return log
