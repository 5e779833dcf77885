"""What a sibling has committed: outer state and receipts of its rounds. It changes only here, and only as a whole."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from distqat.averaging.context import Context
from distqat.averaging.group import Stale
from distqat.averaging.lobby import Lobby
from distqat.averaging.messages import JoinReply
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
    """Siblings that were lost on the way."""


class Committed:
    """The outer state, which every way of moving on replaces by another."""

    def __init__(self, context: Context, lobby: Lobby) -> None:
        self.context = context
        self.lobby = lobby
        self.outer: OuterState | None = None  # None until founded or caught up.
        self.receipts: deque[Receipt] = deque(maxlen=KEPT_RECEIPTS)  # Of the rounds committed here, oldest first.

    def commit(self, state: OuterState, receipt: Receipt) -> None:
        """A round is committed."""
        self.receipts.append(receipt)
        self.adopt(state)

    def adopt(self, state: OuterState) -> None:
        """Take the state, and tell those who wait here and are behind it."""
        self.outer = state
        self.lobby.advance(state.round)
        for join in self.lobby.form.joins:
            if join.round.number < state.round:
                self.lobby.answer(join.peer, JoinReply(stale=self.offer(state)))

    def offer(self, state: OuterState) -> Stale:
        """This sibling as a donor of the state."""
        return Stale(self.context.me, self.context.endpoint, state.round, state.digest)
