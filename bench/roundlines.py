"""From rounds to lines: what stands beside whom, and what is to be reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from bench.case import Better, Case, Goal, Line
from bench.runs import Run
from distqat.wire import codecs

MEGA = 1e6
MILLI = 1e3

BESIDE: Mapping[str, tuple[str, ...]] = {
    "none": ("NONE",),
    "bf16": ("FLOAT16",),
    "int8": ("UNIFORM_8BIT", "BLOCKWISE_8BIT"),
    "int4": (),
    "int2": (),
}
"""hivemind's compressions of as many bits as each codec."""

WALL = {("none", "NONE"): Goal("ratio", 3.0), ("int8", "UNIFORM_8BIT"): Goal("ratio", 5.0)}
CPU = {("none", "NONE"): Goal("ratio", 3.0), ("int8", "UNIFORM_8BIT"): Goal("ratio", 3.0)}
GLOO = "gloo all_reduce, fp32"
BESIDE_GLOO = {("int8", 4): Goal("ratio", 1 / 1.3)}
BESIDE_GLOO_SLOW = {("int8", 4): Goal("ratio", 3.0)}
"""Over 100 Mbit/s."""
ERROR = {"int8": Goal("value", 1.2)}
READY = "all ready to first byte"
FORM = Goal("value", 50.0)
"""Of forming alone: with many elements the first chunk has to be worked out too."""
MEMORY = Goal("value", 3.0)
ALL = Goal("value", 1.0)


@dataclass(frozen=True)
class Size:
    """Of a round."""

    siblings: int
    elements: int

    def __str__(self) -> str:
        return f"{self.siblings} siblings, {self.elements / 1e6:g} M"


@dataclass
class Found:
    """What was measured for one size."""

    ours: dict[str, list[Run]] = field(default_factory=dict)
    """By codec."""
    errors: dict[str, float] = field(default_factory=dict)
    """Relative L2, by codec."""
    gloo: dict[str, list[Run]] = field(default_factory=dict)
    """In turn with the runs of that codec."""
    hivemind: dict[str, list[Run]] = field(default_factory=dict)
    """By compression; empty where it could not be had."""
    hivemind_errors: dict[str, float] = field(default_factory=dict)
    forming: list[Run] = field(default_factory=list)
    """Ours, of a few elements."""


def lines(size: Size, found: Found, is_slow: bool = False) -> Iterator[Line]:
    """All of a size; over slow links only what the link decides."""
    formed = _formed(found.forming)
    if formed and not is_slow:
        case = Case("round", f"{size.siblings} siblings, few elements: {READY}", "ms", "lower", goal=FORM)
        yield case.line(formed)
    for codec in found.ours:
        of = _OfCodec(size, codec, found, "100 Mbit/s, " if is_slow else "")
        yield from of.times(BESIDE_GLOO_SLOW if is_slow else BESIDE_GLOO, {} if is_slow else WALL)
        if not is_slow:
            yield from of.processors()
            yield from of.rest()
        yield from of.bytes()


@dataclass(frozen=True)
class _OfCodec:
    size: Size
    codec: str
    found: Found
    prefix: str

    def times(
        self, beside_gloo: Mapping[tuple[str, int], Goal], beside_hivemind: Mapping[tuple[str, str], Goal]
    ) -> Iterator[Line]:
        ours = [run.seconds for run in self._runs]
        peers = list(self._peers())
        for compression, runs in peers:
            goal = beside_hivemind.get((self.codec, compression))
            case = self._case("", "s", "lower", f"hivemind, {compression}", goal)
            yield case.line(ours, [run.seconds for run in runs])
            if alone := [run.averaging for run in runs if run.averaging is not None]:
                case = self._case("beside an average alone", "s", "lower", f"hivemind, {compression}: average")
                yield case.line(ours, alone)
        if gloo := self.found.gloo.get(self.codec):
            goal = beside_gloo.get((self.codec, self.size.siblings))
            yield self._case("", "s", "lower", GLOO, goal).line(ours, [run.seconds for run in gloo])
        elif not peers:
            yield self._case("", "s", "lower").line(ours)

    def processors(self) -> Iterator[Line]:
        ours = [run.cpu for run in self._runs]
        peers = list(self._peers())
        for compression, runs in peers:
            goal = CPU.get((self.codec, compression))
            case = self._case("CPU of all", "s", "lower", f"hivemind, {compression}", goal)
            yield case.line(ours, [run.cpu for run in runs])
        if not peers:
            yield self._case("CPU of all", "s", "lower").line(ours)

    def bytes(self) -> Iterator[Line]:
        sent = [run.sent / MEGA for run in self._runs]
        yield self._case("sent by all", "MB", "lower", "least of an all-reduce, computed").line(sent, [self._least()])
        for compression, runs in self._peers():
            case = self._case("on the interface", "MB", "lower", f"hivemind, {compression}")
            yield case.line([run.wire / MEGA for run in self._runs], [run.wire / MEGA for run in runs])

    def rest(self) -> Iterator[Line]:
        if formed := _formed(self._runs):
            yield self._case(READY, "ms", "lower").line(formed)
        fragment = 4 * self.size.elements
        grown = [run.grown / fragment for run in self._runs]
        yield self._case("largest growth of a process in a round", "fragments", "lower", goal=MEMORY).line(grown)
        errors = [self.found.errors[self.codec] * 100]
        peers = [name for name in BESIDE[self.codec] if name in self.found.hivemind_errors]
        for name in peers:
            case = self._case("relative error of the average", "%", "lower", f"hivemind, {name}", self._error_goal)
            yield case.line(errors, [self.found.hivemind_errors[name] * 100])
        if not peers:
            yield self._case("relative error of the average", "%", "lower", goal=self._error_goal).line(errors)
        yield from together(self._case("rounds that succeed", "share", "higher"), self._runs, list(self._peers()))

    @property
    def _error_goal(self) -> Goal | None:
        return ERROR.get(self.codec)

    @property
    def _runs(self) -> Sequence[Run]:
        return self.found.ours[self.codec]

    def _peers(self) -> Iterator[tuple[str, Sequence[Run]]]:
        for compression in BESIDE[self.codec]:
            if runs := self.found.hivemind.get(compression):
                yield compression, runs

    def _least(self) -> float:
        """Megabytes that all have to send: each vector but its own slice, and as much back."""
        size = codecs.find(self.codec).size(self.size.elements, torch.float32)
        return 2 * (self.size.siblings - 1) * size / MEGA

    def _case(self, what: str, unit: str, better: Better, peer: str | None = None, goal: Goal | None = None) -> Case:
        name = f"{self.prefix}{self.size}, {self.codec}"
        return Case("round", f"{name}: {what}" if what else name, unit, better, peer, goal)


def _formed(runs: Sequence[Run]) -> list[float]:
    """Milliseconds until the first frame of the exchange."""
    return [run.formed * MILLI for run in runs if run.formed is not None]


def together(case: Case, ours: Sequence[Run], peers: Sequence[tuple[str, Sequence[Run]]]) -> Iterator[Line]:
    """The shares of rounds that have succeeded, and of those after which all hold the same bits."""
    shares = {"": _succeeded, ", with equal bits": _equal}
    for words, share in shares.items():
        name = case.case + words
        for compression, runs in peers:
            own = Case(case.bench, name, case.unit, case.better, f"hivemind, {compression}", ALL)
            yield replace(own.line([share(ours)], [share(runs)]), runs=len(ours))
        if not peers:
            line = Case(case.bench, name, case.unit, case.better, goal=ALL).line([share(ours)])
            yield replace(line, runs=len(ours))


def _succeeded(runs: Sequence[Run]) -> float:
    return sum(run.has_succeeded for run in runs) / len(runs)


def _equal(runs: Sequence[Run]) -> float:
    return sum(run.has_succeeded and run.num_results == 1 for run in runs) / len(runs)
