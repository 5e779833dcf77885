"""Whether an attempt commits, and who is to blame if it does not: the decision of a leader, without its calls. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from distqat.averaging.group import Group, Verdict, Vote
from distqat.averaging.quorum import Quorum
from distqat.ids import PeerId, short


class Tally:
    """The votes of one attempt, as its leader counts them.

    `voices` are the members that decide.
    """

    def __init__(self, group: Group, leader: PeerId, quorum: Quorum, voices: Collection[PeerId]) -> None:
        self.group = group
        self.leader = leader
        self.quorum = quorum
        self.voices = voices
        self.votes: dict[PeerId, Vote] = {}

    def __repr__(self) -> str:
        return f"<Tally {self.group.attempt} {len(self.votes)}/{len(self.group.members)} votes>"

    def cast(self, vote: Vote) -> None:
        """Count a member's vote; a second one changes nothing, nor does that of a stranger."""
        if self.group.find(vote.peer) is not None:
            self.votes.setdefault(vote.peer, vote)

    @property
    def silent(self) -> tuple[PeerId, ...]:
        """Members that have not voted."""
        return tuple(member.peer for member in self.group.members if member.peer not in self.votes)

    @property
    def accused(self) -> set[PeerId]:
        """Members that others could not go on with, and that have not voted."""
        return {PeerId(vote.lost) for vote in self.votes.values() if vote.lost} & set(self.silent)

    def decide(self, lost: Collection[PeerId], gone: Collection[PeerId], is_late: bool) -> Verdict | None:
        """The verdict, or None while votes are missing that may still come.

        Commits what the members with a voice that hold the same result decide. `lost` are members that are not waited
        for, `gone` those that are gone for sure, and `is_late` says that no more time is given. Else those who have
        not voted are lost; if all have, the one with most accusers is to blame.
        """
        if not is_late and not all(peer in lost or peer in gone for peer in self.silent):
            return None
        failures = [vote for vote in self.votes.values() if not vote.prepared]
        digests = Counter(vote.digest for vote in self.votes.values() if vote.prepared)
        right = max(digests, key=lambda digest: (digests[digest], digest == self._own, digest), default="")
        holders = [peer for peer, vote in self.votes.items() if vote.prepared and vote.digest == right]
        wrong = tuple(peer for peer, vote in self.votes.items() if vote.prepared and vote.digest != right)
        if self._is_decided(holders, gone):
            donor = self.leader if self.leader in holders else min(holders)
            return Verdict(True, "", self.silent, wrong, right, donor)
        if self.silent:
            return Verdict(False, self._silence(failures), self.silent)
        if failures:
            return Verdict(False, failures[0].reason, (), self._culprit(failures))
        reason = f"{names(wrong)} came to another result" if wrong else "those who are left do not decide"
        return Verdict(False, reason, (), wrong)

    @property
    def _own(self) -> str:
        vote = self.votes.get(self.leader)
        return vote.digest if vote is not None else ""

    def _is_decided(self, holders: Collection[PeerId], gone: Collection[PeerId]) -> bool:
        """Whether those who hold the result commit it. An average that one holds shows that all have taken part."""
        if not holders:
            return False
        voiceless = {member.peer for member in self.group.members} - set(self.voices)
        return self.quorum.has([peer for peer in holders if peer in self.voices], {*gone, *voiceless})

    def _silence(self, failures: Collection[Vote]) -> str:
        said = next((vote.reason for vote in failures if vote.lost in self.silent and vote.reason), "")
        return said or f"{names(self.silent)} did not vote"

    def _culprit(self, failures: Collection[Vote]) -> tuple[str, ...]:
        """The member with most accusers; the leader last, since the others just heard from it."""
        accusers = Counter(vote.lost for vote in failures if vote.lost)
        if not accusers:
            return ()
        return (max(accusers, key=lambda peer: (accusers[peer], peer != self.leader, peer)),)


def names(peers: Collection[str]) -> str:
    """As people read them."""
    return " and ".join(short(peer) for peer in peers)
