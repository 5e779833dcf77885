"""What is committed: the outer state, the receipts of the rounds, and their averages for siblings that missed them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distqat.averaging.context import Context
from distqat.averaging.contribution import Average
from distqat.averaging.feedback import Feedback
from distqat.averaging.group import Group
from distqat.averaging.kept import Kept, Shelf
from distqat.averaging.outer import OuterState
from distqat.ids import PeerId

KEPT_RECEIPTS = 256
"""Receipts that are remembered."""


@dataclass(frozen=True)
class Receipt:
    """What a committed round says of itself."""

    round: int
    """Its number: rounds committed before it."""
    contributors: tuple[PeerId, ...]
    samples: int
    bytes: int
    """Sent and received by this sibling for its slices."""
    seconds: float
    """From the call of `synchronise` to the commit."""
    digest: str
    """Of the anchor and momentum that it ended with."""
    lost: tuple[PeerId, ...]
    """Siblings that were lost on the way, and are not in it."""
    fragments: tuple[int, ...] = (0,)
    """Those that synchronised."""
    codec: str = "none"
    """Of the contributions and of their average."""
    bits: float = 0.0
    """Sent and received by this sibling, for each parameter and inner step that the schedule has between two rounds."""
    clipped: tuple[PeerId, ...] = ()
    """Contributors that were scaled down."""
    refused: tuple[tuple[PeerId, str], ...] = ()
    """Contributions that were refused, and why."""


class Committed:
    """The outer state, which every way of moving on replaces by another."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.outer: OuterState | None = None  # None until founded or caught up.
        self.since = 0.0  # When it was committed; 0 before it was.
        self.receipts: deque[Receipt] = deque(maxlen=KEPT_RECEIPTS)  # Of the rounds committed here, oldest first.
        # Averages of the latest rounds, for who missed them; longer than the state they would be of no use.
        self.kept = Shelf(context.sync.kept_rounds, context.state_bytes)
        self.feedback = Feedback(context.sync.error_feedback)
        self.on_moved: Callable[[OuterState], None] = lambda state: None  # Told of every other state.
        self._moved = asyncio.Event()  # Set, and replaced, with every other state.

    def commit(self, state: OuterState, receipt: Receipt) -> None:
        """A round is committed."""
        self.receipts.append(receipt)
        self._move(state)

    def adopt(self, state: OuterState) -> None:
        """Take a state that others have committed."""
        self.feedback.clear()
        self._move(state)

    async def wait_other(self, digest: str) -> None:
        """Until a state of another digest is committed."""
        while self.outer is None or self.outer.digest == digest:
            await self._moved.wait()

    def keep(self, rounds: Sequence[Kept]) -> None:
        """Averages that lead to the state, the latest last."""
        for kept in rounds:
            self.kept.append(kept)

    def receipt(self, group: Group, digest: str, average: Average | None, seconds: float) -> Receipt:
        """Of the round that comes next, committed by this group; `average` as far as it was exchanged here."""
        assert self.outer is not None
        number = self.outer.round
        how = self.context.phase(number)
        num_bytes = average.bytes if average is not None else 0
        parameters = sum(self.context.shapes[index].num_parameters for index in how.fragments)
        turns = 1 if how.is_plain else self.context.sync.fragments
        return Receipt(
            round=number,
            contributors=tuple(member.peer for member in group.contributors),
            samples=group.samples,
            bytes=num_bytes,
            seconds=seconds,
            digest=digest,
            lost=(),
            fragments=how.fragments,
            codec=group.codec,
            bits=8 * num_bytes / max(1, parameters * how.steps * turns),
            clipped=tuple(member.peer for member in group.contributors if member.factor < 1.0),
        )

    def _move(self, state: OuterState) -> None:
        self.outer = state
        self.since = asyncio.get_running_loop().time()
        self.on_moved(state)
        self._moved.set()
        self._moved = asyncio.Event()
