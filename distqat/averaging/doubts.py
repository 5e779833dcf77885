"""What became of a result that siblings have voted for without hearing the verdict. Pure.

The leader of a new attempt asks nobody: whoever joins says what it holds. If a group may have committed that result, at
a sibling that cannot be asked, then the round can have no other one: it is voted on again by those who hold it, or the
round waits. If no group can have committed it, it is given up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from distqat.averaging.group import Contact, Join
from distqat.averaging.quorum import Quorum
from distqat.ids import PeerId


@dataclass(frozen=True)
class Free:
    """Nothing was committed: any result will do."""


@dataclass(frozen=True)
class Settle:
    """Those who hold this result can commit it."""

    digest: str


@dataclass(frozen=True)
class Unsure:
    """One of these may have committed a result that those who are here cannot commit."""

    missing: tuple[Contact, ...]


def judge(
    quorum: Quorum, joins: Sequence[Join], gone: Collection[PeerId], absent: Collection[PeerId]
) -> Free | Settle | Unsure:
    """What those who join an attempt may do; `gone` decide nothing any more, and `absent` tell nobody either."""
    holders = _holders(joins)
    if not holders:
        return Free()
    voices = {join.peer for join in joins if join.has_voice}
    possible: dict[str, tuple[Contact, ...]] = {}
    for digest, members in _members(joins).items():
        outside = _outside(members, {join.peer for join in joins}, absent)
        against = voices - holders[digest]
        if outside and _may_be_committed(quorum, members, against):
            possible[digest] = outside
    if not possible:
        # It is cheaper to commit what all hold than to work it out again.
        [digest, *others] = holders
        is_shared = not others and len(holders[digest]) == len(joins)
        return Settle(digest) if is_shared and _decides(quorum, joins, holders[digest], gone) else Free()
    [digest, *others] = possible
    if not others and _decides(quorum, joins, holders[digest], gone):
        return Settle(digest)
    return Unsure(tuple({contact.peer: contact for outside in possible.values() for contact in outside}.values()))


def unresolved(joins: Sequence[Join], absent: Collection[PeerId]) -> tuple[Contact, ...]:
    """Members of any attempt of which those who join have not heard what became, if they are not here."""
    joined = {join.peer for join in joins}
    found = {one.peer: one for join in joins if join.doubt is not None for one in join.doubt.members}
    return _outside(found, joined, absent)


def _decides(quorum: Quorum, joins: Sequence[Join], holders: Collection[PeerId], gone: Collection[PeerId]) -> bool:
    return quorum.has([join.peer for join in joins if join.has_voice and join.peer in holders], gone)


def _may_be_committed(quorum: Quorum, members: Mapping[PeerId, Contact], against: Collection[PeerId]) -> bool:
    """Whether members outside may have made a quorum, when these siblings with a voice have not voted for it."""
    if not any(peer in against for peer in quorum.base):
        # All that decide may have voted for it, or have been known to be gone.
        return True
    return quorum.is_majority([peer for peer in members if peer not in against])


def _holders(joins: Sequence[Join]) -> dict[str, set[PeerId]]:
    holders: dict[str, set[PeerId]] = {}
    for join in joins:
        if join.doubt is not None and join.doubt.digest:
            holders.setdefault(join.doubt.digest, set()).add(join.peer)
    return holders


def _members(joins: Sequence[Join]) -> dict[str, dict[PeerId, Contact]]:
    members: dict[str, dict[PeerId, Contact]] = {}
    for join in joins:
        if join.doubt is not None and join.doubt.digest:
            members.setdefault(join.doubt.digest, {}).update({one.peer: one for one in join.doubt.members})
    return members


def _outside(
    members: Mapping[PeerId, Contact], joined: Collection[PeerId], absent: Collection[PeerId]
) -> tuple[Contact, ...]:
    return tuple(contact for peer, contact in members.items() if peer not in joined and peer not in absent)
