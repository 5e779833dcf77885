"""zstd after the codec, on where it shortens the transfer: what was measured, and what follows from it. Pure.

A byte takes 1 / link seconds as it is, and ratio / link + 1 / compressing + 1 / decompressing if compressed first.
Nothing of that is taken to overlap: the processors that compress have other work as well. Ratio and speeds are measured
on a sample of a tensor now and then, and on every tensor while zstd is on (`zstd.py` does the work).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Mode = Literal["auto", "on", "off"]

LEVELS = (-3, 1)
"""Of zstd, the fastest first. Higher ones take several times as long for a few hundredths of the bytes."""

MIN_BYTES = 64 << 10
"""Smaller tensors travel as they are."""

PROBE_EVERY = 32
"""Tensors between two looks at all levels."""

TURN_ON = 0.95
"""Of the time without zstd; it must take less than this to be turned on,"""

TURN_OFF = 0.98
"""and more than this to be turned off again."""

NEWEST = 0.3
"""Weight of the last measurement in what is believed."""


@dataclass(frozen=True)
class Trial:
    """One tensor, or a sample of one, that was compressed: bytes before and after, seconds of the work."""

    level: int
    raw: int
    small: int
    compress: float
    decompress: float | None = None
    """None if it was not undone again."""


@dataclass(frozen=True)
class Estimate:
    """What is believed of one level: bytes that are left of each, and seconds of work for each."""

    ratio: float
    compress: float
    decompress: float

    def seconds(self, link_rate: float) -> float:
        """For each byte, from tensor to tensor."""
        return self.ratio / link_rate + self.compress + self.decompress


@dataclass(frozen=True)
class Plan:
    """What to do with the next tensor."""

    level: int | None = None
    """None: let it travel as it is."""
    probe: tuple[int, ...] = ()
    """Levels to try on a sample first, after which there may be another plan."""


@dataclass(frozen=True)
class CompressionState:
    """How things stand at one moment. Rates are bytes per second before compression; what is not known is 0."""

    mode: Mode
    is_on: bool
    level: int
    ratio: float
    """Bytes that are left of each; 1 while it is not known."""
    compress_rate: float
    decompress_rate: float
    link_rate: float
    """Bytes per second on the wire."""


class Compression:
    """Decides for one direction of one hop."""

    def __init__(self, mode: Mode = "auto") -> None:
        self.mode = mode
        self.link_rate = 0.0  # Bytes per second on the wire, as the other end has measured; 0 while it is not known.
        self.is_on = mode == "on"  # The next large tensor is compressed.
        self._level = LEVELS[-1]  # The best one, as far as is known.
        self._estimates: dict[int, Estimate] = {}  # By level; empty before the first trial.
        self._until_probe = 0  # Tensors until all levels are looked at again.

    def __repr__(self) -> str:
        state = self.statistics()
        known = f", level {state.level}, ratio {state.ratio:.2f}" if state.level in self._estimates else ""
        link = f"link {self.link_rate / 1e6:.1f} MB/s" if self.link_rate else "link unknown"
        return f"<Compression {self.mode}: {'on' if self.is_on else 'off'}{known}, {link}>"

    def statistics(self) -> CompressionState:
        """A snapshot."""
        known = self._estimates.get(self._level, Estimate(1.0, 0.0, 0.0))
        return CompressionState(
            self.mode,
            self.is_on,
            self._level,
            known.ratio,
            1 / known.compress if known.compress else 0.0,
            1 / known.decompress if known.decompress else 0.0,
            self.link_rate,
        )

    def is_wanted(self, size: int) -> bool:
        """Whether a tensor of that many bytes may need work."""
        return size >= MIN_BYTES and (self.mode == "on" or (self.mode == "auto" and self.link_rate > 0))

    def plan(self, size: int) -> Plan:
        """What to do with a tensor of that many bytes, the next to be sent."""
        if not self.is_wanted(size):
            return Plan()
        if self._until_probe <= 0:
            self._until_probe = PROBE_EVERY
            return Plan(probe=LEVELS)
        self._until_probe -= 1
        self._decide()
        return Plan(self._level if self.is_on else None)

    def tried(self, trials: Iterable[Trial]) -> None:
        """Learn from what was compressed."""
        for trial in trials:
            if trial.raw:
                self._learn(trial)
        self._decide()

    def _learn(self, trial: Trial) -> None:
        ratio, compress = trial.small / trial.raw, trial.compress / trial.raw
        old = self._estimates.get(trial.level)
        decompress = trial.decompress / trial.raw if trial.decompress is not None else None
        if old is None:
            self._estimates[trial.level] = Estimate(ratio, compress, decompress or 0.0)
        else:
            self._estimates[trial.level] = Estimate(
                _mixed(old.ratio, ratio),
                _mixed(old.compress, compress),
                _mixed(old.decompress, decompress) if decompress is not None else old.decompress,
            )

    def _decide(self) -> None:
        link_rate = self.link_rate
        if self.mode == "off" or not link_rate or not self._estimates:
            return
        self._level = min(self._estimates, key=lambda level: self._estimates[level].seconds(link_rate))
        if self.mode == "auto":
            share = self._estimates[self._level].seconds(link_rate) * link_rate
            self.is_on = share < (TURN_OFF if self.is_on else TURN_ON)


def _mixed(old: float, new: float) -> float:
    return (1 - NEWEST) * old + NEWEST * new
