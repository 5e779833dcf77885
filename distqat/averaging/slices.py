"""Which member adds which elements: contiguous slices in the order of the members, sized by their links. Pure.

A contributor sends its other slices and takes back the averages of them; as an owner it takes M - 1 contributions to
its own slice and sends its average M - 1 times. So with a share x of N elements a link carries N (1 + x (M - 2)) each
way, and takes that over its rate. The shares that finish first are found by filling up: a time T is so long that

    sum_j max(0, T r_j - 1) = M - 2,   x_j = max(0, T r_j - 1) / (M - 2)

where r_j is the slower of a member's two directions. A member with T r_j <= 1 owns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from distqat.averaging.group import Group, Join, Member
from distqat.averaging.outer import MOST_PIPELINES
from distqat.errors import ConfigError, MessageError
from distqat.ids import PeerId, StepRef, is_name
from distqat.wire import codecs
from distqat.wire.codecs.codec import Codec


def shares(rates: Sequence[float]) -> list[float]:
    """The share of every member, given how fast its slower direction is; a rate that is not known is 0.

    Who is not known counts as the fastest that is.
    """
    number, fastest = len(rates), max(rates)
    if number <= 2 or fastest <= 0:
        # Of two each link carries N, however they share; so they halve the work.
        return [1 / number] * number
    known = [(rate if rate > 0 else fastest) / fastest for rate in rates]
    total = 0.0
    for count, rate in enumerate(sorted(known, reverse=True), start=1):
        total += rate
        time = (number - 2 + count) / total
        following = sorted(known, reverse=True)[count] if count < number else 0.0
        if time * following <= 1.0:
            break
    raw = [max(0.0, time * rate - 1.0) for rate in known]
    return [part / sum(raw) for part in raw]


def cut(num_elements: int, parts: Sequence[float], block: int = 1) -> list[tuple[int, int]]:
    """Begin and end of the slices of these shares, at multiples of `block`; some are empty when there are too few."""
    blocks = -(-num_elements // block)
    ends = [min(num_elements, block * math.floor(blocks * share + 1e-9)) for share in accumulate(parts)]
    return list(pairwise([0, *ends[:-1], num_elements]))


def assign(
    attempt: str,
    joins: Sequence[Join],
    num_elements: int,
    codec: str = "none",
    factors: Mapping[PeerId, float] | None = None,
) -> Group:
    """The group of these siblings, with slices by the rates that they gave. Their order is that of their names.

    `factors` are of contributions that are scaled down. A lone member sends nothing, so its codec is none.
    """
    ordered = sorted(joins, key=lambda join: join.peer)
    codec = codec if len(ordered) > 1 else "none"
    parts = shares([_slower(join) for join in ordered])
    scaled = factors or {}
    members = [
        Member(
            join.peer,
            join.endpoint,
            join.samples,
            begin,
            end,
            join.norm,
            scaled.get(join.peer, 1.0),
            join.origins if join.samples else (),
        )
        for join, (begin, end) in zip(ordered, cut(num_elements, parts, codecs.find(codec).block), strict=True)
    ]
    return Group(attempt, tuple(members), codec)


def check(group: Group, join: Join) -> None:
    """Raise MessageError unless the slices cover every element once and the group has this sibling as it joined."""
    block, covered = _codec(group).block, 0
    for member in group.members:
        if member.begin != covered or member.end < member.begin:
            raise MessageError(f"slice {member.begin}:{member.end} where one from {covered} on was expected")
        covered = member.end
        if member.begin % block and member.begin != join.elements:
            raise MessageError(f"a slice that begins at {member.begin}, within a block of {block}")
        if not 0.0 < member.factor <= 1.0 or not 0.0 <= member.norm < math.inf:
            raise MessageError(f"a factor of {member.factor} for a contribution of norm {member.norm}")
        fault = origins_fault(member.origins)
        if fault:
            raise MessageError(fault)
    if covered != join.elements:
        raise MessageError(f"slices of {covered} elements for a fragment of {join.elements}")
    peers = [member.peer for member in group.members]
    if peers != sorted(set(peers)):
        raise MessageError("a group whose members are not in order")
    mine = group.find(join.peer)
    # The leader may leave out a contribution, but not count it otherwise.
    said = (join.samples, join.norm, join.origins)
    if mine is None or (mine.samples and (mine.samples, mine.norm, mine.origins) != said):
        raise MessageError("a group that does not have this sibling as it joined")
    if not group.samples:
        raise MessageError("a group in which nobody contributes")


def origins_fault(origins: Sequence[StepRef]) -> str:
    """What is wrong with what a contribution says that it stands for, or nothing: all siblings take it over."""
    if len(origins) > MOST_PIPELINES:
        return f"a contribution of {len(origins)} pipelines"
    return "" if all(is_name(origin.pipeline) for origin in origins) else "a contribution of a pipeline without a name"


def _slower(join: Join) -> float:
    """Bytes per second of the slower direction; of one that is not known, those of the other."""
    known = [rate for rate in (join.rates.up, join.rates.down) if rate > 0]
    return min(known, default=0.0)


def _codec(group: Group) -> Codec:
    try:
        return codecs.find(group.codec)
    except ConfigError as error:
        raise MessageError(error.reason) from None
