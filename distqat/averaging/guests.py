"""The siblings that a forming round invites, and what they say to it."""

from __future__ import annotations

import asyncio
import logging

from distqat.averaging import member, rendezvous
from distqat.averaging.context import Context, Sibling
from distqat.averaging.effort import Effort
from distqat.averaging.group import Invite, Join
from distqat.averaging.lobby import Lobby
from distqat.averaging.messages import JoinReply
from distqat.errors import DistqatError, RefusedError, StaleError, UnreachableError, WrongRunError
from distqat.ids import PeerId, short

log = logging.getLogger(__name__)

INVITE_INTERVAL = 0.5
"""Seconds between two invitations of a sibling that has not come."""


class Guests:
    """Invites each missing sibling by a task of its own."""

    def __init__(self, context: Context, lobby: Lobby, effort: Effort, mine: Join) -> None:
        self.context = context
        self.lobby = lobby
        self.effort = effort
        self.mine = mine
        self.engaged: set[PeerId] = set()  # Take part in this round at another leader.
        self.ahead: JoinReply | None = None  # The answer of one that has committed this round already.
        self._tasks: dict[PeerId, asyncio.Task[None]] = {}  # One for each sibling that was ever missing.

    def call(self, group: asyncio.TaskGroup, sibling: Sibling) -> None:
        """Invite the sibling until it comes; it is invited already if this was said before."""
        task = self._tasks.get(sibling.peer)
        if task is None or task.done():
            self._tasks[sibling.peer] = group.create_task(self._invite(sibling))

    def dismiss(self) -> None:
        """Invite no more."""
        for task in self._tasks.values():
            task.cancel()

    async def _invite(self, sibling: Sibling) -> None:
        while all(join.peer != sibling.peer for join in self.lobby.form.joins):
            try:
                await self._ask(sibling)
            except (UnreachableError, RefusedError, WrongRunError) as error:
                self.effort.lose(sibling.peer, error)
                self.lobby.changed.set()
                return
            except DistqatError as error:
                # It lives and does not answer, or answers nonsense: the round waits for it no longer than it must.
                log.debug("invitation of %s to %s: %s", short(sibling.peer), self.mine.round, error)
            self.lobby.changed.set()
            await asyncio.sleep(INVITE_INTERVAL)

    async def _ask(self, sibling: Sibling) -> None:
        try:
            reply = await member.invite(self.context, sibling.endpoint, self.mine.round.number)
        except StaleError:
            # It has committed this round, so it answers a join at once with where to catch up.
            answer = await member.join(self.context, sibling.peer, sibling.endpoint, self.mine)
            self.ahead = answer if answer.stale is not None else None
            return
        self.engaged.discard(sibling.peer)
        if not reply.joining:
            self.engaged.add(sibling.peer)
        if reply.leading and rendezvous.outranks(self.mine.round, sibling.peer, self.context.me):
            self.lobby.accept(Invite(self.mine.round, sibling.peer, sibling.endpoint))
