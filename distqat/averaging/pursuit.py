"""Takes a sibling through its rounds: does what `round` says, and tells it what came of it. Decides nothing.

What it is busy with (waiting at a leader, averaging, waiting for a verdict, fetching state) is one task at a time;
siblings that a leader rings have a task each. What others send comes in between, as it comes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from distqat.averaging import calls, catchup, events
from distqat.averaging.blame import AttemptError
from distqat.averaging.committed import Committed
from distqat.averaging.context import LOOK_INTERVAL, Context, wait_changed
from distqat.averaging.contribution import Average
from distqat.averaging.effort import Effort, Prepared
from distqat.averaging.events import Event
from distqat.averaging.exchange import Exchange, Exchanges
from distqat.averaging.group import Contact, Group, Invite, Invited, Join
from distqat.averaging.kept import Kept
from distqat.averaging.lobby import Lobby
from distqat.averaging.outer import OuterState
from distqat.averaging.round import Round, is_for_resting
from distqat.averaging.way import State
from distqat.errors import DistqatError, RoundError
from distqat.ids import PeerId, short
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

TICK = 1e-4
"""Seconds that it waits at least, so that a clock's rounding never makes it wait in vain for ever."""

STANDSTILL = 2.0
"""Seconds in which a call that is under way did not even look at the clock; waits that ended meanwhile say nothing."""

RINGING = (State.FORMING, State.COUNTING)
"""States in which others are rung."""


class Pursuit:
    """One sibling's rounds."""

    def __init__(self, context: Context, committed: Committed, reason: Reason) -> None:
        self.context = context
        self.committed = committed
        self.reason = reason
        me = Contact(context.me, context.endpoint)
        self.round = Round(me, context.round(0), context.sync, context.waits, secrets.token_hex(4))
        self.lobby = Lobby(context.me, self.feed, lambda: self.round.state)
        self.exchanges = Exchanges()
        self.invited = asyncio.Event()  # Set while another sibling waits for this one.
        self.stranded = asyncio.Event()  # Set while the last call has failed for want of siblings that are rung beside.
        self.wanted: Join | None = None  # What the last call brought; None before the first.
        self.prepared: Prepared | None = None  # What this sibling last voted for, or would have.
        self._effort: Effort | None = None  # The call under way.
        self._group: asyncio.TaskGroup | None = None  # Owns the tasks of that call.
        self._busy: asyncio.Task[None] | None = None  # What it is busy with.
        self._rings: set[asyncio.Task[None]] = set()  # Siblings that are rung.
        self._exchange: Exchange | None = None  # Of the attempt that it takes part in.
        self._events: deque[Event] = deque()  # That have happened while another one was being dealt with.
        self._is_feeding = False
        self._reply: Invited | DistqatError | None = None  # To the latest invitation.
        self._ended: events.Finish | None = None  # What the call came to; None while it goes on.
        self._due = 0.0  # When the clock is looked at next.
        self._seen = math.inf  # When something was last dealt with in this call.
        self._changed = asyncio.Event()  # Set when it has to be sooner.
        committed.on_moved = self._on_moved

    @property
    def outer(self) -> OuterState:
        """What is committed. Raises RoundError if nothing is."""
        if self.committed.outer is None:
            raise RoundError(f"{short(self.context.me)} has no committed state to start a round from")
        return self.committed.outer

    async def pursue(self, effort: Effort, join: Join) -> None:
        """Until a round is committed, or the state of one that was is here. Raises RoundError."""
        self._effort, self._ended, self._seen, self.wanted = effort, None, math.inf, join
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                self._look()
                self.feed(events.Begin(join))
                await self._watch_clock()
            finally:
                self.stop(f"{short(self.context.me)} gave up round {join.round.number}")
        ended: events.Finish | None = self._ended
        if ended is not None and ended.failure:
            raise RoundError(ended.failure)

    def stop(self, reason: str) -> None:
        """End whatever is under way. Those who wait here look elsewhere, unless a call has just come to its end."""
        if self._group is None or self._ended is None:
            self.feed(events.Stopped(reason))
        self._group = self._effort = None
        for task in (self._busy, *self._rings):
            if task is not None:
                task.cancel()
        self._busy = None
        self._rings.clear()

    def feed(self, event: Event) -> None:
        """Something has happened: do what follows, at once and in order."""
        self._events.append(event)
        if self._is_feeding:
            return
        self._is_feeding = True
        self._notice_standstill()
        try:
            while self._events:
                now = asyncio.get_running_loop().time()
                for action in self.round.handle(self._events.popleft(), now):
                    self._do(action)
        finally:
            self._is_feeding = False
        self._after()

    def _notice_standstill(self) -> None:
        """The call ends before anything is decided by waits that this process has slept through."""
        now = asyncio.get_running_loop().time()
        stood, self._seen = now - self._seen, now
        if self._effort is None or self._ended is not None or stood < STANDSTILL:
            return
        if not is_for_resting(self._events[-1]):
            self._events.pop()  # It is about what ends now.
        self._events.appendleft(events.StoodStill(stood))
        if self._busy is not None and self._busy is not asyncio.current_task():
            self._busy.cancel()

    def consider(self, invite: Invite) -> Invited:
        """What this sibling will do about an invitation. Raises StaleError when the round is committed here."""
        self.feed(events.Called(invite))
        reply, self._reply = self._reply, None
        if isinstance(reply, DistqatError):
            raise reply
        assert reply is not None
        return reply

    def _after(self) -> None:
        if self.round.is_wanted:
            self.invited.set()
        else:
            self.invited.clear()
        if self.round.company.impasse:
            self.stranded.set()
        else:
            self.stranded.clear()
        if self.round.state is not State.RESTING:
            self.reason.set(self.round.describe(), logging.DEBUG)
        if self.round.state not in RINGING:
            for task in self._rings:
                task.cancel()
        if self._ended is not None or self.round.wake < self._due:
            self._changed.set()

    async def _watch_clock(self) -> None:
        """Look again when it is time."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while self._ended is None:
            self._due = looked + LOOK_INTERVAL
            if self.round.wake > looked:
                self._due = min(self._due, self.round.wake)
            if loop.time() >= self._due:
                looked = loop.time()
                self._look()
            else:
                await wait_changed(self._changed, max(self._due - loop.time(), TICK))

    def _look(self) -> None:
        ready = {peer: sibling.endpoint for peer, sibling in self.context.ready().items()}
        self.feed(events.Looked(ready))

    def _on_moved(self, state: OuterState) -> None:
        elements = self.context.elements(self.context.phase(state.round))
        # Before anything else that has happened meanwhile: it would meet a state that is gone.
        self._events.appendleft(events.Moved(state.round, state.digest, state.members, elements))
        if not self._is_feeding:
            self.feed(self._events.popleft())

    def _do(self, action: events.Action) -> None:
        match action:
            case events.Ask(leader, join, patience):
                self._start(partial(calls.ask, self.context, leader, join, patience))
            case events.Exchange(group):
                self._start(partial(self._average, group))
            case events.Cast(leader, vote, patience):
                self._start(partial(calls.cast, self.context, leader, vote, patience))
            case events.Fetch():
                self._start(partial(self._catch_up, action))
            case events.Ring(contact):
                self._ring(contact)
            case events.Open(group):
                self.lobby.open(group)
            case events.Release(peer, reply):
                self.lobby.release(peer, reply)
            case events.Reply(reply):
                self._reply = reply
            case events.Pronounce(attempt, verdict):
                self.lobby.pronounce(attempt, verdict)
            case events.Conclude(attempt):
                self._conclude(attempt)
            case events.Commit(digest):
                self._commit(digest)
            case events.Report(peer, reason, is_refused):
                self._report(peer, reason, is_refused)
            case events.Finish():
                self._ended = action

    # Tasks.

    def _start(self, work: Callable[[], Awaitable[Event | None]]) -> None:
        """Be busy with this instead of whatever was before."""
        assert self._group is not None
        if self._busy is not None and self._busy is not asyncio.current_task():
            self._busy.cancel()
        self._busy = self._group.create_task(self._tell(work))

    def _ring(self, contact: Contact) -> None:
        assert self._group is not None
        join = self.round.mine
        assert join is not None
        patience = self.round.company.patience(contact.peer)
        task = self._group.create_task(self._tell(partial(calls.ring, self.context, contact, join, patience)))
        self._rings.add(task)
        task.add_done_callback(self._rings.discard)

    async def _tell(self, work: Callable[[], Awaitable[Event | None]]) -> None:
        event = await work()
        if event is not None:
            self.feed(event)

    async def _average(self, group: Group) -> Event:
        """What the round would end with, worked out but not applied; or why there is nothing."""
        assert self._effort is not None
        mine, before = group.find(self.context.me), self.outer
        contribution = self._effort.contribution if mine is not None and mine.samples else None
        exchange = self._exchange = Exchange(self.context, group, contribution, before)
        self.exchanges.begin(exchange)
        try:
            average = await exchange.run()
        except AttemptError as error:
            return events.Broken(error.reason, error.lost or "")
        members = tuple(member.peer for member in group.members)
        state = await self.context.work(partial(exchange.step.result, average, members, group.origins))
        self.prepared = Prepared(state, group, average, contribution)
        return events.Averaged(state.digest)

    async def _catch_up(self, fetch: events.Fetch) -> Event | None:
        """Take what others have committed, of which `_on_moved` tells."""
        before, stale, effort = self.outer, fetch.stale, self._effort
        assert effort is not None
        try:
            caught = await catchup.advance(self.context, before, stale)
        except DistqatError as error:
            return events.Missed(stale.donor, error.reason)
        if caught.state.round < before.round:
            reason = f"has committed {caught.state.round} rounds, fewer than {before.round}"
            return events.Missed(stale.donor, f"{short(stale.donor)} {reason}")
        effort.contribution = None
        self.committed.keep(caught.rounds)
        if fetch.group is not None and caught.state.digest == stale.digest:
            # What this sibling has contributed is in it: the round is as good as any other.
            self._finish_round(caught.state, fetch.group, None)
        else:
            # What may be in the rounds that were missed must not be carried over as well.
            effort.caught.append(caught.is_replayed and not caught.took_part(self.context.me))
            self.committed.adopt(caught.state)
        return None

    # Ends.

    def _conclude(self, attempt: str) -> None:
        """The streams of the attempt break, and late ones are refused."""
        if self._exchange is not None and self._exchange.attempt.group.attempt == attempt:
            self.exchanges.end(self._exchange)
            self._exchange = None

    def _commit(self, digest: str) -> None:
        """Make what was prepared the committed state."""
        prepared, self.prepared = self.prepared, None
        assert prepared is not None
        assert prepared.state.digest == digest
        before = self.outer
        self.committed.feedback.commit(prepared.contribution, prepared.average)
        kept = Kept(
            round=before.round,
            before=before.digest,
            digest=digest,
            members=prepared.state.members,
            codec=prepared.average.codec,
            payload=prepared.average.payload,
            origins=prepared.group.origins,
        )
        self.committed.keep([kept])
        self._finish_round(prepared.state, prepared.group, prepared.average)

    def _finish_round(self, state: OuterState, group: Group, average: Average | None) -> None:
        assert self._effort is not None
        company, contributors = self.round.company, {member.peer for member in group.contributors}
        if average is None:
            self.committed.feedback.clear()
        seconds = asyncio.get_running_loop().time() - self._effort.began
        receipt = replace(
            self.committed.receipt(group, state.digest, average, seconds),
            lost=tuple(sorted(company.lost.keys() - contributors)),
            refused=tuple(sorted((company.muted | self.round.refused).items())),
        )
        self.committed.commit(state, receipt)
        log.debug("round %d: %d samples of %d", receipt.round, receipt.samples, len(receipt.contributors))

    def _report(self, peer: PeerId, reason: str, is_refused: bool) -> None:
        if is_refused:
            log.warning("%s: the contribution of %s is not taken: %s", self.round.round, short(peer), reason)
            self.context.on_refused(peer, reason)
        else:
            self.context.on_lost(peer, reason)
