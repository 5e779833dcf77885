"""Which fault comes when: what was asked for, spread over the time by a seeded generator. Pure.

A fault names no daemon. Who is hit is drawn when it is due, from those that have a stage at that moment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from distqat.errors import ConfigError

SPARE_SHARE = 0.1
"""Of the faults, those that hit a spare instead of a daemon that has a stage, if there is one."""

KILLED_SECONDS = 3.0
"""After which a killed daemon is started again."""

LEASES = 1.5
"""For which a stopped or cut daemon is silent: its lease must end."""


class Kind(StrEnum):
    """What can be done to a daemon."""

    KILL = "kill"
    """SIGKILL of an expert; it is started again with the same state folder."""
    STOP = "stop"
    """SIGSTOP of an expert for longer than a lease, then SIGCONT."""
    CUT = "cut"
    """All links of an expert, in and out: connections are reset and refused, or stay and carry nothing."""
    KILL_HEAD = "kill-head"
    """SIGKILL of the daemon that is monitor, client and trainer; it is started again with the same state folder."""


@dataclass(frozen=True)
class Fault:
    """One fault of a schedule."""

    number: int
    kind: Kind
    at: float
    """Seconds after the schedule began."""
    seconds: float
    """For which the victim is dead, stopped or cut; one that was killed then takes its time to start."""
    draw: float
    """Chooses the victim: 0 to 1."""
    is_silent: bool = False
    """Of a cut: connections stay, and not a byte passes."""
    hits_spare: bool = False

    @property
    def label(self) -> str:
        """Under which its recovery is counted."""
        return f"{self.kind} of a spare" if self.hits_spare else str(self.kind)


def parse_faults(text: str) -> Mapping[Kind, int]:
    """How many faults of which kind: `kill=10,stop=5,cut=3`. Raises ConfigError that names what is wrong."""
    wanted: dict[Kind, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in set(Kind):
            raise ConfigError(f"--faults: there is no fault '{name}'; there are: {', '.join(sorted(Kind))}")
        if name in wanted:
            raise ConfigError(f"--faults: '{name}' is there twice")
        if not number.isdecimal() or not int(number):
            raise ConfigError(f"--faults: '{part.strip()}' is not {name}=NUMBER with a number of at least 1")
        wanted[Kind(name)] = int(number)
    return wanted


def shortest_gap(num_daemons: int) -> float:
    """Seconds between two faults, at least: what follows can be told apart, and more daemons take longer to settle."""
    return 4.0 + 0.25 * num_daemons


def schedule(
    wanted: Mapping[Kind, int], seconds: float, seed: int, num_daemons: int, lease: float
) -> tuple[Fault, ...]:
    """The faults in the order of their times; the last has as much time after it as any other.

    Equal arguments give equal schedules. Raises ConfigError if the time is too short for so many.
    """
    draws, gap = Random(seed), shortest_gap(num_daemons)
    kinds = [kind for kind in Kind for _ in range(wanted.get(kind, 0))]
    room = seconds - len(kinds) * gap
    if room < 0:
        raise ConfigError(
            f"{len(kinds)} faults with {num_daemons} daemons need {math.ceil(len(kinds) * gap / 6) / 10:g} minutes, "
            f"{gap:g} s for each; --minutes gives {seconds / 60:.2g}"
        )
    draws.shuffle(kinds)
    offsets = sorted(draws.uniform(0, room) for _ in kinds)
    faults, num_cuts = [], 0
    for number, (kind, offset) in enumerate(zip(kinds, offsets, strict=True)):
        draw, hits_spare = draws.random(), draws.random() < SPARE_SHARE and kind is not Kind.KILL_HEAD
        away = KILLED_SECONDS if kind in (Kind.KILL, Kind.KILL_HEAD) else LEASES * lease + 1.0
        # Every other cut: with few of them chance might choose one way only.
        is_silent = kind is Kind.CUT and num_cuts % 2 == 0
        num_cuts += kind is Kind.CUT
        faults.append(Fault(number, kind, offset + number * gap, away, draw, is_silent, hits_spare))
    return tuple(faults)


def choose(fault: Fault, seated: Sequence[str], spares: Sequence[str], head: str) -> str | None:
    """The victim's name; a spare only if there is one. None: there is nobody to hit now."""
    if fault.kind is Kind.KILL_HEAD:
        return head
    among = sorted(spares if fault.hits_spare and spares else seated)
    return among[int(fault.draw * len(among))] if among else None
