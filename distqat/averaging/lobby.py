"""Whom this sibling keeps waiting: siblings that have joined, until their round has formed, and members that have
voted, until the verdict. Decides nothing."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from distqat.averaging import events
from distqat.averaging.context import LOOK_INTERVAL
from distqat.averaging.group import Group, Join, JoinReply, Verdict, Vote
from distqat.averaging.way import State
from distqat.errors import DistqatError, RefusedError, StaleError
from distqat.ids import PeerId, short

KEPT_ATTEMPTS = 16
"""Attempts whose verdict is remembered for members that ask late."""

KEPT_CALLS = 256
"""Joins that are remembered after they were answered, so that none counts twice."""

Answer = JoinReply | DistqatError


@dataclass(frozen=True, eq=False)
class _Guest:
    call: str
    answer: asyncio.Future[Answer]


@dataclass(frozen=True, eq=False)
class _Sitting:
    group: Group
    verdict: asyncio.Future[Verdict]


class Lobby:
    """Joins and votes that have no answer yet. `feed` is told what happens, `state` says what this sibling does."""

    def __init__(self, me: PeerId, feed: Callable[[events.Event], None], state: Callable[[], State]) -> None:
        self.me = me
        self._feed = feed
        self._state = state
        self._guests: dict[PeerId, _Guest] = {}  # Siblings that wait for their round to form.
        self._answered: OrderedDict[str, None] = OrderedDict()  # Calls of joins that are over, oldest first.
        self._sittings: OrderedDict[str, _Sitting] = OrderedDict()  # Attempts led here, oldest first.

    def __repr__(self) -> str:
        return f"<Lobby {len(self._guests)} waiting>"

    async def join(self, join: Join, patience: float, is_held_up: Callable[[], bool] = lambda: False) -> JoinReply:
        """Keep the sibling until its round has formed. Raises what it has to go with instead.

        While this sibling is between two rounds, it waits for so many seconds at most, and not while this one stands
        still in the middle of a step.
        """
        guest, loop = self._admit(join), asyncio.get_running_loop()
        until = loop.time() + patience
        try:
            while not guest.answer.done():
                if self._state() is not State.RESTING:
                    until = loop.time() + patience
                elif loop.time() >= until or is_held_up():
                    raise RefusedError(f"{short(self.me)} has not reached the end of a step in time")
                await asyncio.wait({guest.answer}, timeout=min(LOOK_INTERVAL, max(until - loop.time(), 0.0)))
            answer = guest.answer.result()
            if isinstance(answer, DistqatError):
                raise answer
            return answer
        finally:
            # Who calls twice and leaves once has left.
            self.release(join.peer, RefusedError(f"{short(join.peer)} has left"), guest)
            self._feed(events.Left(join.peer, join.call))

    def release(self, peer: PeerId, answer: Answer, guest: _Guest | None = None) -> None:
        """Let a waiting sibling go with this; nothing happens if it does not wait, or not any more as that guest."""
        known = self._guests.get(peer)
        if known is None or guest not in (None, known):
            return
        del self._guests[peer]
        self._answered[known.call] = None
        while len(self._answered) > KEPT_CALLS:
            self._answered.popitem(last=False)
        if not known.answer.done():
            known.answer.set_result(answer)

    def open(self, group: Group) -> None:
        """Votes come for this attempt from now on."""
        self._sittings[group.attempt] = _Sitting(group, asyncio.get_running_loop().create_future())
        while len(self._sittings) > KEPT_ATTEMPTS:
            self._sittings.popitem(last=False)

    def pronounce(self, attempt: str, verdict: Verdict) -> None:
        """Who has voted, and who votes or asks later, hears this."""
        sitting = self._sittings.get(attempt)
        if sitting is not None and not sitting.verdict.done():
            sitting.verdict.set_result(verdict)

    async def vote(self, vote: Vote) -> Verdict:
        """What became of the attempt. Raises StaleError for one that is not known here (any more), or RefusedError."""
        sitting = self._sittings.get(vote.attempt)
        if sitting is None:
            raise StaleError(f"attempt {vote.attempt} is not known to {short(self.me)}")
        if sitting.group.find(vote.peer) is None:
            raise RefusedError(f"{short(vote.peer)} is not in attempt {vote.attempt}")
        if not sitting.verdict.done():
            self._feed(events.Voted(vote))
            await asyncio.wait({sitting.verdict})
        return sitting.verdict.result()

    def _admit(self, join: Join) -> _Guest:
        """The same call twice is one guest, another call of the same sibling replaces the one before."""
        known = self._guests.get(join.peer)
        if known is not None and known.call == join.call:
            return known
        if join.call in self._answered:
            raise RefusedError(f"{short(join.peer)} has had its answer to this call already")
        self.release(join.peer, RefusedError(f"{short(join.peer)} has asked again"))
        guest = self._guests[join.peer] = _Guest(join.call, asyncio.get_running_loop().create_future())
        self._feed(events.Joined(join))
        return guest
