"""The votes of one attempt, collected at its leader."""

from __future__ import annotations

import asyncio

from distqat.averaging import member, vote
from distqat.averaging.context import LOOK_INTERVAL, Context, wait_changed
from distqat.averaging.group import Group, Verdict, Vote
from distqat.errors import DistqatError, RefusedError, UnreachableError
from distqat.ids import PeerId, short

ASK_INTERVAL = 0.2
"""Seconds between two looks at whether members that have not voted are still there."""


class Ballot:
    """Votes come in any order; the verdict is pronounced once, and whoever asks later hears the same."""

    def __init__(self, context: Context, group: Group, number: int) -> None:
        self.context = context
        self.group = group
        self.number = number
        self.verdict: Verdict | None = None  # None while votes are missing.
        self._votes: dict[PeerId, Vote] = {}
        self._seen: set[PeerId] = set()  # Siblings that the directory had at some time.
        self._unreachable: set[PeerId] = set()  # Members that did not vote and do not answer either.
        self._changed = asyncio.Event()  # Set with every vote.
        self._decided = asyncio.Event()  # Set with the verdict.

    def __repr__(self) -> str:
        return f"<Ballot {self.group.attempt} {len(self._votes)}/{len(self.group.members)} votes {self.verdict or ''}>"

    def cast(self, ballot: Vote) -> None:
        """Count a member's vote; a second one changes nothing. Raises RefusedError."""
        if self.group.find(ballot.peer) is None:
            raise RefusedError(f"{short(ballot.peer)} is not in attempt {ballot.attempt}")
        self._votes.setdefault(ballot.peer, ballot)
        self._changed.set()

    async def wait(self) -> Verdict:
        """What became of the attempt."""
        await self._decided.wait()
        assert self.verdict is not None
        return self.verdict

    async def conclude(self) -> Verdict:
        """The verdict, pronounced as soon as it is clear; the leader has voted."""
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._ask_silent())
            verdict = await self._decide()
            asking.cancel()
        return verdict

    def abandon(self, reason: str) -> None:
        """There will be no verdict but this: not committed. Too late if one was pronounced."""
        if self.verdict is None:
            self._pronounce(Verdict(False, reason))

    async def _decide(self) -> Verdict:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.context.waits.ballot
        while self.verdict is None:
            is_late = loop.time() >= deadline
            verdict = vote.decide(self.group, self.context.me, self._votes, self._gone(), is_late)
            if verdict is None:
                await wait_changed(self._changed, LOOK_INTERVAL)
            else:
                self._pronounce(verdict)
        return self.verdict

    async def _ask_silent(self) -> None:
        """A member may die after its last chunk and before its vote, when no stream is left that would break."""
        while True:
            await asyncio.sleep(ASK_INTERVAL)
            for silent in [silent for silent in self.group.members if silent.peer not in self._votes]:
                try:
                    await member.invite(self.context, silent.endpoint, self.number)
                except UnreachableError:
                    self._unreachable.add(silent.peer)
                    self._changed.set()
                except DistqatError:
                    continue  # It answers, if only with an error.

    def _pronounce(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self._decided.set()

    def _gone(self) -> set[PeerId]:
        """Members that do not answer, or that the directory had and has not any more."""
        live = {sibling.peer for sibling in self.context.siblings()} | {self.context.me}
        self._seen |= live
        return self._unreachable | (self._seen - live)
