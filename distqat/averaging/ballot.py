"""The votes of one attempt, collected at its leader."""

from __future__ import annotations

import asyncio

from distqat.averaging import vote
from distqat.averaging.context import LOOK_INTERVAL, Context, wait_changed
from distqat.averaging.group import Group, Verdict, Vote
from distqat.errors import RefusedError
from distqat.ids import PeerId, short


class Ballot:
    """Votes come in any order; the verdict is pronounced once, and whoever asks later hears the same."""

    def __init__(self, context: Context, group: Group) -> None:
        self.context = context
        self.group = group
        self.verdict: Verdict | None = None  # None while votes are missing.
        self._votes: dict[PeerId, Vote] = {}
        self._seen: set[PeerId] = set()  # Siblings that the directory had at some time.
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

    def abandon(self, reason: str) -> None:
        """There will be no verdict but this: not committed. Too late if one was pronounced."""
        if self.verdict is None:
            self._pronounce(Verdict(False, reason))

    def _pronounce(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self._decided.set()

    def _gone(self) -> set[PeerId]:
        """Members that the directory had and has not any more."""
        live = {sibling.peer for sibling in self.context.siblings()} | {self.context.me}
        self._seen |= live
        return {member.peer for member in self.group.members if member.peer in self._seen - live}
