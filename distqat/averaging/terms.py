"""On what terms a group exchanges: its codec, and who is scaled down. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from distqat.averaging import slices
from distqat.averaging.group import Group, Join
from distqat.averaging.phases import Phase
from distqat.ids import PeerId
from distqat.sections import SyncSection
from distqat.wire import codecs

CODECS = ("none", "bf16", "int8", "int4", "int2")
"""Those of rounds, the finest first."""

ENOUGH = "int8"
"""No finer codec learns better (docs/design/flow-b.md), so `auto` begins here."""

COARSEST_PLAIN = "int8"
"""The coarsest codec in which whole parameters are averaged."""


def wanted(sync: SyncSection, elements: int, uplink: float, seconds: float) -> str:
    """The codec that a sibling asks for: the setting, or what fits into its share of the seconds between two rounds.

    Every member of a group sends about twice its `elements`. An `uplink` [bytes per second] that is not known is 0.
    """
    if sync.codec != "auto":
        return sync.codec
    names = CODECS[CODECS.index(ENOUGH) :]
    if uplink <= 0 or seconds <= 0:
        return ENOUGH
    room = sync.budget * seconds * uplink
    return next((name for name in names if 2 * codecs.find(name).size(elements, torch.float32) <= room), names[-1])


def codec(joins: Sequence[Join], how: Phase) -> str:
    """Of a group of these siblings: the coarsest that one of them asks for."""
    coarsest = max((join.codec for join in joins), key=CODECS.index)
    return min(coarsest, COARSEST_PLAIN, key=CODECS.index) if how.is_plain else coarsest


def factors(joins: Sequence[Join], clip: float) -> dict[PeerId, float]:
    """By what contributions are scaled that are longer than `clip` times the median of all; 0: none is."""
    norms = {join.peer: join.norm for join in joins if join.samples}
    if not norms or not clip:
        return {}
    longest = clip * statistics.median(norms.values())
    return {peer: longest / norm for peer, norm in norms.items() if norm > longest > 0}


def fault(join: Join) -> str:
    """What is wrong with what a sibling says of its contribution; empty if nothing is."""
    if not math.isfinite(join.norm) or join.norm < 0:
        return f"a contribution of norm {join.norm}"
    if not all(math.isfinite(rate) and rate >= 0 for rate in (join.rates.up, join.rates.down)):
        return f"links of {join.rates.up} and {join.rates.down} bytes per second"
    if join.codec not in CODECS:
        return f"codec '{join.codec}', which rounds do not have"
    return ""


def group(attempt: str, joins: Sequence[Join], how: Phase, clip: float, muted: Collection[PeerId]) -> Group:
    """The group of these siblings. The contributions of the `muted` are not taken, so theirs count no samples."""
    heard = [join if join.peer not in muted else _silenced(join) for join in joins]
    return slices.assign(attempt, heard, joins[0].elements, codec(heard, how), factors(heard, clip))


def settling(attempt: str, joins: Sequence[Join], digest: str) -> Group:
    """The group of siblings that only vote, on a result of that digest."""
    none = slices.assign(attempt, [_silenced(join) for join in joins], 0)
    return Group(attempt, none.members, settles=digest)


def _silenced(join: Join) -> Join:
    return replace(join, samples=0)
