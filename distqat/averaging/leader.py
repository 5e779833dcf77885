"""Leading a round: invite the siblings that have not come, and form the group."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable

from distqat.averaging import slices
from distqat.averaging.ballot import Ballot
from distqat.averaging.context import LOOK_INTERVAL, Context, Sibling, wait_changed
from distqat.averaging.effort import Effort
from distqat.averaging.form import CatchUp, Skip, Start, Wait
from distqat.averaging.group import Join, Stale
from distqat.averaging.guests import Guests
from distqat.averaging.lobby import Lobby
from distqat.averaging.messages import JoinReply
from distqat.errors import DistqatError, RefusedError, StaleError
from distqat.ids import short
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

KEPT_BALLOTS = 16
"""Ballots that are remembered for members who ask late."""


class Leader:
    """What one sibling does in the rounds that it leads."""

    def __init__(self, context: Context, lobby: Lobby, reason: Reason) -> None:
        self.context = context
        self.lobby = lobby
        self.reason = reason
        self._ballots: OrderedDict[str, Ballot] = OrderedDict()  # By attempt, oldest first.

    def ballot(self, attempt: str) -> Ballot:
        """The votes of an attempt. Raises StaleError when this sibling does not know it (any more)."""
        ballot = self._ballots.get(attempt)
        if ballot is None:
            raise StaleError(f"attempt {attempt} is not known to {short(self.context.me)}")
        return ballot

    async def lead(self, effort: Effort, mine: Join) -> JoinReply:
        """A group with this sibling in it, or where to catch up first; within `lobby.leading()`.

        Raises RefusedError when another sibling leads after all.
        """
        self.lobby.form.join(mine, asyncio.get_running_loop().time())
        guests = Guests(self.context, self.lobby, effort, mine)
        outcome: JoinReply | DistqatError
        async with asyncio.TaskGroup() as group:
            try:
                outcome = await self._gather(guests, effort, mine, lambda peer: guests.call(group, peer))
            finally:
                guests.dismiss()
        if isinstance(outcome, DistqatError):
            self.lobby.send_away(outcome.reason)
            raise outcome
        return outcome

    async def _gather(
        self, guests: Guests, effort: Effort, mine: Join, call: Callable[[Sibling], None]
    ) -> JoinReply | DistqatError:
        """Wait until the form decides; errors are returned, since a task group would wrap them."""
        loop = asyncio.get_running_loop()
        while True:
            if self.lobby.has_yielded:
                return RefusedError(f"another sibling leads {mine.round}")
            if guests.ahead is not None:
                return guests.ahead
            given_up = effort.lost | self.lobby.excluded.keys()
            expected = {peer: sibling for peer, sibling in self.context.ready().items() if peer not in given_up}
            decision = self.lobby.form.decide(expected, guests.engaged & expected.keys(), loop.time())
            if isinstance(decision, Start):
                return self._start(mine, decision)
            if isinstance(decision, Skip | CatchUp):
                reply = self._refer(decision)
                if mine.peer in decision.peers:
                    return reply
                continue
            self._explain(mine, decision)
            for peer in decision.missing:
                if peer in expected:
                    call(expected[peer])
            await wait_changed(self.lobby.changed, min(LOOK_INTERVAL, max(0.0, decision.until - loop.time())))

    def _start(self, mine: Join, decision: Start) -> JoinReply:
        attempt = f"{mine.round.number}-{secrets.token_hex(6)}"
        reply = JoinReply(group=slices.assign(attempt, decision.members, mine.elements))
        assert reply.group is not None
        # Before anybody can vote.
        self._ballots[attempt] = Ballot(self.context, reply.group, mine.round.number)
        while len(self._ballots) > KEPT_BALLOTS:
            self._ballots.popitem(last=False)
        for join in decision.members:
            self.lobby.answer(join.peer, reply)
        self.lobby.form.clear()
        return reply

    def _refer(self, decision: Skip | CatchUp) -> JoinReply:
        """Tell siblings which anchor counts."""
        donor = decision.reference
        reply = JoinReply(stale=Stale(donor.peer, donor.endpoint, donor.round.number, donor.digest))
        for peer in decision.peers:
            if isinstance(decision, CatchUp):
                log.info("%s holds another anchor than %s", short(peer), short(donor.peer))
            self.lobby.answer(peer, reply)
        return reply

    def _explain(self, mine: Join, decision: Wait) -> None:
        names = ", ".join(short(peer) for peer in decision.missing)
        self.reason.set(f"{mine.round}: waiting for {names or 'nobody'} to join", logging.DEBUG)
