"""Which member adds which elements: contiguous slices in the order of the members, equal but for one element."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from distqat.averaging.group import Group, Join, Member
from distqat.errors import MessageError


def cut(num_elements: int, parts: int) -> list[tuple[int, int]]:
    """Begin and end of every slice; some are empty when there are fewer elements than parts."""
    bounds = [num_elements * part // parts for part in range(parts + 1)]
    return list(pairwise(bounds))


def assign(attempt: str, joins: Sequence[Join], num_elements: int) -> Group:
    """The group of these siblings. Their order is that of their names, whoever came first."""
    ordered = sorted(joins, key=lambda join: join.peer)
    members = [
        Member(join.peer, join.endpoint, join.samples, begin, end)
        for join, (begin, end) in zip(ordered, cut(num_elements, len(ordered)), strict=True)
    ]
    return Group(attempt, tuple(members))


def check(group: Group, join: Join) -> None:
    """Raise MessageError unless the slices cover every element once and the group has this sibling as it joined."""
    covered = 0
    for member in group.members:
        if member.begin != covered or member.end < member.begin:
            raise MessageError(f"slice {member.begin}:{member.end} where one from {covered} on was expected")
        covered = member.end
    if covered != join.elements:
        raise MessageError(f"slices of {covered} elements for a fragment of {join.elements}")
    peers = [member.peer for member in group.members]
    if peers != sorted(set(peers)):
        raise MessageError("a group whose members are not in order")
    mine = group.find(join.peer)
    if mine is None or mine.samples != join.samples:
        raise MessageError("a group that does not have this sibling as it joined")
    if not group.samples:
        raise MessageError("a group in which nobody contributes")
