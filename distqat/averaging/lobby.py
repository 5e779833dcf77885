"""The siblings that wait at this one for a round to form, and what this one is doing meanwhile.

A join that finds this sibling between rounds is an invitation: it waits until the expert's next step boundary. While
this sibling takes part in the round elsewhere, it sends those who ask away; they find the same leader or the next.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from contextlib import contextmanager

from distqat.averaging import rendezvous
from distqat.averaging.context import Context
from distqat.averaging.form import Form
from distqat.averaging.group import Invite, Join
from distqat.averaging.messages import Invited, JoinReply
from distqat.averaging.waits import Patience
from distqat.errors import DistqatError, RefusedError, StaleError
from distqat.ids import PeerId, short

Answer = JoinReply | DistqatError
"""What a waiting sibling goes with."""


class Doing(enum.Enum):
    """What this sibling does about the round."""

    NOTHING = "nothing"
    FORMING = "forming"
    """It leads, and waits for the others."""
    EXCHANGING = "exchanging"
    """It leads, and the group has formed."""
    ELSEWHERE = "elsewhere"
    """It waits or takes part at another leader."""


class Lobby:
    """Joins at this sibling, and invitations of others."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.form = Form(context.me, Patience(context.waits.form))
        self.doing = Doing.NOTHING
        self.leader: PeerId | None = None  # Who leads while `doing` is ELSEWHERE.
        self.number = 0  # The next round of this sibling.
        self.invite: Invite | None = None  # The latest invitation that still counts.
        self.has_yielded = False  # While FORMING: another sibling leads this round, `invite` says which.
        self.excluded: dict[PeerId, str] = {}  # Left out of this round, and why.
        self.changed = asyncio.Event()  # Set when a leader should look again.
        self.invited = asyncio.Event()  # Set while somebody waits for this sibling.
        self._waiting: dict[PeerId, asyncio.Future[Answer]] = {}  # Joins that have no answer yet.

    def __repr__(self) -> str:
        return f"<Lobby {self.doing.value}, {len(self._waiting)} waiting>"

    @property
    def has_guests(self) -> bool:
        """Whether another sibling waits here."""
        return bool(self._waiting)

    async def wait(self, join: Join) -> JoinReply:
        """Keep the sibling until its round has formed, or until it is clear that it will not form here."""
        self._admit(join.peer)
        self.answer(join.peer, RefusedError(f"{short(join.peer)} has asked again"))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting[join.peer] = future
        self.form.join(join, loop.time())
        self.changed.set()
        self.invited.set()
        try:
            while not future.done():
                await asyncio.wait({future}, timeout=self.context.waits.form)
                if not future.done() and self.doing is Doing.NOTHING:
                    raise RefusedError(f"{short(self.context.me)} has not reached the end of a step in time")
            reply = future.result()
            if isinstance(reply, DistqatError):
                raise reply
            return reply
        finally:
            if self._waiting.get(join.peer) is future:
                del self._waiting[join.peer]
                self.form.leave(join.peer)
                self.changed.set()

    def answer(self, peer: PeerId, reply: Answer) -> None:
        """Let a waiting sibling go with this; nothing happens if it does not wait."""
        future = self._waiting.pop(peer, None)
        self.form.leave(peer)
        if future is not None and not future.done():
            future.set_result(reply)

    def send_away(self, reason: str) -> None:
        """Let all waiting siblings look elsewhere."""
        for peer in list(self._waiting):
            self.answer(peer, RefusedError(reason))

    def consider(self, invite: Invite) -> Invited:
        """What this sibling will do about an invitation. Raises StaleError when the round is committed here."""
        me = self.context.me
        if invite.round.number < self.number:
            raise StaleError(f"{short(me)} has committed {self.number} rounds, {invite.round} among them")
        if invite.leader in self.excluded:
            # Not an error: a sibling that is only refused would go on alone, and commit the round a second time.
            return Invited(False, f"{short(invite.leader)} is left out of {invite.round}")
        if self.doing is Doing.NOTHING:
            self.accept(invite)
            return Invited(True)
        if self.doing is Doing.FORMING:
            if invite.round.number == self.number and rendezvous.outranks(invite.round, me, invite.leader):
                return Invited(False, f"{short(me)} leads {invite.round}", leading=True)
            self.accept(invite)
            return Invited(True)
        return Invited(self.leader == invite.leader, f"{short(me)} takes part in {invite.round} already")

    def accept(self, invite: Invite) -> None:
        """Join there next; a round that forms here ends."""
        self.invite = invite
        self.has_yielded = self.doing is Doing.FORMING
        self.invited.set()
        self.changed.set()

    def decline(self, leader: PeerId) -> None:
        """That sibling's invitation does not count any more."""
        if self.invite is not None and self.invite.leader == leader:
            self.invite = None

    def advance(self, number: int) -> None:
        """So many rounds are committed here now; who was left out may come again."""
        self.number = number
        self.excluded.clear()
        self.refresh()

    def give_up(self, reason: str) -> None:
        """The round is not pursued any further; who waits here looks elsewhere."""
        self.invite = None
        self.send_away(reason)
        self.refresh()

    def refresh(self) -> None:
        """Work out anew whether somebody waits for this sibling."""
        if self.invite is not None and self.invite.round.number < self.number:
            self.invite = None
        if self.invite is not None or self._waiting:
            self.invited.set()
        else:
            self.invited.clear()

    @contextmanager
    def leading(self) -> Iterator[None]:
        """This sibling leads within."""
        self.doing, self.has_yielded = Doing.FORMING, False
        try:
            yield
        finally:
            self.doing = Doing.NOTHING
            self.form.leave(self.context.me)

    @contextmanager
    def elsewhere(self, leader: PeerId, reason: str) -> Iterator[None]:
        """This sibling takes part at that leader within; who waits here is sent away."""
        self.doing, self.leader = Doing.ELSEWHERE, leader
        self.send_away(reason)
        try:
            yield
        finally:
            self.doing, self.leader = Doing.NOTHING, None

    def _admit(self, peer: PeerId) -> None:
        me = short(self.context.me)
        if self.doing is Doing.ELSEWHERE:
            raise RefusedError(f"{me} takes part in the round at {short(self.leader or '')}")
        if peer in self.excluded:
            raise RefusedError(f"{short(peer)} is left out of this round: {self.excluded[peer]}")
