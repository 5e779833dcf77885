"""The way to one committed round: attempt after attempt, each with a leader, a group, an exchange and a verdict.

An attempt that fails costs nothing but time: nothing is applied before the leader has said that all members hold the
same result, and the next attempt does without whoever was lost. A sibling that has voted and never heard the verdict
finds out by asking the next leader: if the round is committed anywhere it is offered what it voted for.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from distqat.averaging import catchup, member, outer, rendezvous, slices
from distqat.averaging.attempt import AttemptError
from distqat.averaging.ballot import Ballot
from distqat.averaging.committed import Committed, Receipt
from distqat.averaging.context import Context
from distqat.averaging.effort import Effort, Prepared
from distqat.averaging.exchange import Exchange, Exchanges
from distqat.averaging.group import Group, Join, RoundRef, Stale, Verdict, Vote
from distqat.averaging.leader import Leader
from distqat.averaging.lobby import Doing, Lobby
from distqat.averaging.outer import OuterState
from distqat.errors import (
    DeadlineError,
    DistqatError,
    OverloadedError,
    RefusedError,
    RoundError,
    StaleError,
    TensorError,
    WrongRunError,
)
from distqat.ids import Endpoint, PeerId, short
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

PAUSE = 0.05
"""Seconds before the next attempt when nobody was lost; doubled with every failure, up to ten times this."""


class Pursuit:
    """Takes one sibling through its rounds."""

    def __init__(self, context: Context, lobby: Lobby, committed: Committed, reason: Reason) -> None:
        self.context = context
        self.lobby = lobby
        self.committed = committed
        self.reason = reason
        self.leader = Leader(context, lobby, reason)
        self.exchanges = Exchanges()

    @property
    def outer(self) -> OuterState:
        """What is committed. Raises RoundError if nothing is."""
        if self.committed.outer is None:
            raise RoundError(f"{short(self.context.me)} has no committed state to start a round from")
        return self.committed.outer

    @property
    def round(self) -> RoundRef:
        """The next round of this sibling."""
        return self.context.round(self.outer.round)

    async def pursue(self, effort: Effort) -> None:
        """Attempt after attempt, until one commits or the state of one that did is here. Raises RoundError."""
        is_done = False
        while not is_done:
            leader, endpoint = self._choose(effort)
            try:
                is_done = await self._attempt(effort, leader, endpoint)
            except (WrongRunError, TensorError) as error:
                raise RoundError(f"{self.round}: {error.reason}") from None
            except AttemptError as error:
                log.info("an attempt at %s failed: %s", self.round, error)
                await self._pause(effort)
            except RoundError:
                raise
            except (RefusedError, OverloadedError, DeadlineError, StaleError) as error:
                # It lives, but does not lead now; the next in the order does.
                log.debug("%s at %s: %s", self.round, short(leader), error)
                self.lobby.decline(leader)
                effort.declined.add(leader)
                await self._pause(effort)
            except DistqatError as error:
                self.lobby.decline(leader)
                effort.lose(leader, error)

    def _choose(self, effort: Effort) -> tuple[PeerId, Endpoint]:
        """Where to go: to who waits here, to who has invited, else to the first in the order."""
        me, invite = self.context.me, self.lobby.invite
        if self.lobby.has_guests and (invite is None or rendezvous.outranks(invite.round, me, invite.leader)):
            return me, self.context.endpoint
        if invite is not None:
            return invite.leader, invite.endpoint
        given_up = effort.lost | effort.declined | self.lobby.excluded.keys()
        endpoints = {peer: sibling.endpoint for peer, sibling in self.context.ready().items() if peer not in given_up}
        endpoints[me] = self.context.endpoint
        first = rendezvous.order(self.round, endpoints)[0]
        return first, endpoints[first]

    async def _attempt(self, effort: Effort, leader: PeerId, endpoint: Endpoint) -> bool:
        """Whether the effort is over: a round is committed, or what others have committed is here."""
        context, state = self.context, self.outer
        join = Join(self.round, context.me, context.endpoint, effort.samples, state.digest, context.num_elements)
        if leader == context.me:
            with self.lobby.leading():
                reply = await self.leader.lead(effort, join)
                if reply.group is not None:
                    self.lobby.doing = Doing.EXCHANGING
                    return await self._exchange(effort, reply.group, leader, endpoint)
        else:
            self.reason.set(f"{self.round}: waiting for {short(leader)} to form it", logging.DEBUG)
            with self.lobby.elsewhere(leader, f"{short(leader)} leads {self.round}"):
                reply = await member.join(context, leader, endpoint, join)
                if reply.group is not None:
                    slices.check(reply.group, join)
                    return await self._exchange(effort, reply.group, leader, endpoint)
        assert reply.stale is not None
        return await self._catch_up(effort, reply.stale)

    async def _exchange(self, effort: Effort, group: Group, leader: PeerId, endpoint: Endpoint) -> bool:
        """Exchange, vote, and commit if that is the verdict."""
        ballot = self.leader.ballot(group.attempt) if leader == self.context.me else None
        exchange: Exchange | None = None
        try:
            exchange = await self._begin(effort, group)
            vote = await self._prepare(effort, exchange)
            self.reason.set(f"{self.round}: waiting for the verdict of {short(leader)}", logging.DEBUG)
            verdict = await self._vote(vote, leader, endpoint, ballot)
        finally:
            if exchange is not None:
                self.exchanges.end(exchange)
            if ballot is not None:
                ballot.abandon(f"{short(leader)} has left the attempt")
        if verdict.committed:
            self._commit(effort)
            return True
        self._learn(effort, verdict)
        return False

    async def _begin(self, effort: Effort, group: Group) -> Exchange:
        state, how = self.outer, outer.phase(self.outer.round, self.context.sync)
        if effort.contribution is None and effort.samples:
            effort.contribution = await self.context.work(partial(outer.delta, state, effort.local, how))
        exchange = Exchange(self.context, group, effort.contribution)
        self.exchanges.begin(exchange)
        self.reason.set(f"{self.round}: exchanging among {len(group.members)}", logging.DEBUG)
        return exchange

    async def _prepare(self, effort: Effort, exchange: Exchange) -> Vote:
        """What the round would end with, worked out but not applied; or why there is nothing."""
        group = exchange.attempt.group
        effort.prepared = None
        try:
            average = await exchange.run()
        except AttemptError as error:
            return Vote(group.attempt, self.context.me, False, reason=error.reason, lost=error.lost or "")
        how = outer.phase(self.outer.round, self.context.sync)
        state = await self.context.work(partial(outer.apply, self.outer, average, how))
        effort.prepared = Prepared(state, group, exchange.attempt.bytes)
        return Vote(group.attempt, self.context.me, True, digest=state.digest)

    async def _vote(self, vote: Vote, leader: PeerId, endpoint: Endpoint, ballot: Ballot | None) -> Verdict:
        if ballot is None:
            return await member.vote(self.context, leader, endpoint, vote)
        ballot.cast(vote)
        return await ballot.conclude()

    def _commit(self, effort: Effort) -> None:
        """Make what was prepared the committed state."""
        prepared = effort.prepared
        if prepared is None:
            raise RoundError(f"{self.round} was committed by its leader without the vote of {short(self.context.me)}")
        receipt = Receipt(
            round=self.outer.round,
            contributors=tuple(member.peer for member in prepared.group.contributors),
            samples=prepared.group.samples,
            bytes=prepared.bytes,
            seconds=asyncio.get_running_loop().time() - effort.began,
            digest=prepared.state.digest,
            lost=tuple(sorted(effort.lost)),
        )
        self.committed.commit(prepared.state, receipt)
        log.debug("round %d: %d samples of %d", receipt.round, receipt.samples, len(receipt.contributors))

    def _learn(self, effort: Effort, verdict: Verdict) -> None:
        """The attempt was abandoned: do without whoever was lost. Raises RoundError if that is this sibling."""
        effort.prepared = None
        effort.declined.clear()
        if self.context.me in verdict.lost:
            raise RoundError(f"{short(self.context.me)} is left out of {self.round}: {verdict.reason}")
        for name in verdict.lost:
            peer = PeerId(name)
            self.lobby.excluded[peer] = verdict.reason
            effort.lose(peer, AttemptError(verdict.reason))
        if not verdict.lost:
            raise AttemptError(verdict.reason)

    async def _catch_up(self, effort: Effort, stale: Stale) -> bool:
        """Take what the group holds; the effort goes on only if a sibling waits for this one."""
        before, prepared = self.outer, effort.prepared
        if stale.digest == before.digest:
            # Nobody has trained since the round before: the anchor stands.
            return True
        if prepared is not None and prepared.state.digest == stale.digest:
            self._commit(effort)
            return True
        self.reason.set(f"{self.round}: catching up from {short(stale.donor)}")
        try:
            state = await catchup.fetch(self.context, stale.donor, stale.endpoint)
        except DistqatError as error:
            effort.lose(stale.donor, error)
            return False
        if state.round < before.round:
            raise StaleError(f"{short(stale.donor)} has committed {state.round} rounds, fewer than {before.round}")
        effort.forget_contribution()
        self.committed.adopt(state)
        return state.round > before.round and not self.lobby.invited.is_set()

    async def _pause(self, effort: Effort) -> None:
        effort.failures += 1
        await asyncio.sleep(min(PAUSE * 2.0 ** (effort.failures - 1), 10 * PAUSE))
