"""Whether an attempt commits, and who is to blame if it does not: the decision of a leader, without its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from distqat.averaging.group import Group, Verdict, Vote
from distqat.ids import PeerId, short


def decide(
    group: Group, leader: PeerId, votes: Mapping[PeerId, Vote], gone: Collection[PeerId], is_late: bool
) -> Verdict | None:
    """The verdict, or None while votes are missing that may still come.

    Commits when every member is prepared with the same digest. `gone` are members that are known to be lost, and
    `is_late` says that no more time is given. A member that is accused by another and does not vote is lost; if all
    vote, the one with most accusers is.
    """
    peers = [member.peer for member in group.members]
    failures = [votes[peer] for peer in peers if peer in votes and not votes[peer].prepared]
    accused = {vote.lost for vote in failures if vote.lost}
    silent = [peer for peer in peers if peer not in votes]
    if silent:
        if not is_late and not all(peer in accused or peer in gone for peer in silent):
            return None
        return Verdict(False, _silence(failures, silent), tuple(silent))
    if failures:
        return Verdict(False, failures[0].reason, _culprit(failures, leader))
    digests = Counter(votes[peer].digest for peer in peers)
    if len(digests) > 1:
        right = max(digests, key=lambda digest: (digests[digest], digest == votes[leader].digest))
        wrong = tuple(peer for peer in peers if votes[peer].digest != right)
        return Verdict(False, f"{_names(wrong)} came to another result", wrong)
    return Verdict(True)


def _silence(failures: Collection[Vote], silent: Collection[str]) -> str:
    said = next((vote.reason for vote in failures if vote.lost in silent and vote.reason), "")
    return said or f"{_names(silent)} did not vote"


def _culprit(failures: Collection[Vote], leader: PeerId) -> tuple[str, ...]:
    """The member with most accusers; the leader last, since the others just heard from it."""
    accusers = Counter(vote.lost for vote in failures if vote.lost)
    if not accusers:
        return ()
    return (max(accusers, key=lambda peer: (accusers[peer], peer != leader, peer)),)


def _names(peers: Collection[str]) -> str:
    return " and ".join(short(peer) for peer in peers)
