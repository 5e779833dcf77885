"""Who takes turns with whom, what happens where memory is short, and what a killed member shows; groups are played."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from bench import killed, round
from bench.case import Line
from bench.hivemind import PeerError
from bench.machines import HERE, Machine
from bench.round import TINY, Plan
from bench.roundlines import Found, Size
from bench.runs import Run
from distqat.sections import SyncSection
from tests.support import run

TWO = Size(2, 1 << 20)
PLAN = Plan((TWO,), ("none", "int8"), ("NONE", "UNIFORM_8BIT"), 2, 0)
GOOD = Run(1.0, 0.5, 1000, True, 1, sent=800, formed=0.01, grown=100)


class Played:
    """Both groups, and what they were asked for, in that order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        for module in (round, killed):
            monkeypatch.setattr(module, "open_group", self.open_group)
            monkeypatch.setattr(module, "open_averagers", self.open_averagers)
        self.is_there = True  # hivemind can be had.
        self.hangs_at = ""  # A compression at which it answers no more.

    @asynccontextmanager
    async def open_group(self, machines: Sequence[Machine]) -> AsyncIterator[PlayedGroup]:
        self.asked.append("open ours")
        yield PlayedGroup(self.asked)
        self.asked.append("close ours")

    @asynccontextmanager
    async def open_averagers(self, machines: Sequence[Machine]) -> AsyncIterator[PlayedAveragers]:
        if not self.is_there:
            raise PeerError("no package index")
        self.asked.append("open hivemind")
        yield PlayedAveragers(self.asked, self.hangs_at)


class PlayedGroup:
    def __init__(self, asked: list[str]) -> None:
        self.asked = asked
        self.elements = 0

    async def meet(self) -> None:
        self.asked.append("meet")

    async def prepare(self, elements: int, sync: SyncSection) -> None:
        self.elements = elements
        self.asked.append(f"prepare {sync.codec}" if elements != TINY else "prepare tiny")

    async def round(self) -> Run:
        self.asked.append("round")
        return GOOD

    async def all_reduce(self) -> Run:
        self.asked.append("gloo")
        return GOOD

    async def error(self, elements: int, sync: SyncSection) -> float:
        return 0.01

    async def kill(self, after: int) -> Run:
        self.asked.append(f"kill after {after}")
        return Run(1.5, 0.5, 1000, True, 1)

    async def replace_last(self) -> None:
        self.asked.append("replace")


class PlayedAveragers:
    def __init__(self, asked: list[str], hangs_at: str) -> None:
        self.asked = asked
        self.hangs_at = hangs_at

    async def prepare(self, elements: int, compressions: Sequence[str]) -> None:
        self.asked.append(f"prepare {' '.join(compressions)}")

    async def round(self, compression: str, is_watched: bool = False) -> Run:
        self.asked.append(compression)
        if compression == self.hangs_at:
            raise PeerError("no answer within 180 s")
        return Run(3.0, 2.0, 900, True, 2, formed=1.0 if is_watched else None)

    async def error(self, compression: str) -> float:
        return 0.02

    async def kill(self, compression: str, after: float) -> Run:
        self.asked.append(f"{compression} killed after {after:g}")
        return Run(9.0, 0.0, 0, True, 3)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


def measure(plan: Plan = PLAN) -> Found:
    found = run(round._measure(TWO, [HERE, HERE], plan))
    assert found is not None
    return found


def test_all_take_turns(played: Played) -> None:
    found = measure()
    text = " > ".join(played.asked)
    alone, turns = "round > " * round.WARM_UP, "round > gloo > UNIFORM_8BIT"
    assert f"prepare int8 > {alone}prepare UNIFORM_8BIT > {turns} > {turns} > {turns}" in text, "the first warms up"
    assert text.startswith("open hivemind > open ours > meet > prepare tiny > round")
    assert [len(runs) for runs in (found.ours["int8"], found.gloo["none"], found.hivemind["NONE"])] == [2, 2, 2]
    assert found.hivemind_errors == {"NONE": 0.02, "UNIFORM_8BIT": 0.02}
    assert len(found.forming) == 2


def test_where_both_do_not_fit_hivemind_comes_after_ours(
    played: Played, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = float(psutil.virtual_memory().available)
    monkeypatch.setattr(round, "need", lambda size: (0.7 * free, 0.7 * free))
    found = measure()
    assert played.asked.index("close ours") < played.asked.index("open hivemind")
    assert set(found.hivemind) == {"NONE", "UNIFORM_8BIT"}
    assert "do not fit into memory together" in caplog.text


def test_what_does_not_fit_at_all_is_left_out_and_the_log_says_so(
    played: Played, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(round, "need", lambda size: (1e18, 0.0))
    assert run(round._measure(TWO, [HERE, HERE], PLAN)) is None
    assert not played.asked
    assert "left out: 2 siblings, 1.04858 M takes" in caplog.text


def test_without_hivemind_ours_and_gloo_are_measured(played: Played, caplog: pytest.LogCaptureFixture) -> None:
    played.is_there = False
    found = measure()
    assert not found.hivemind
    assert len(found.ours["int8"]) == 2
    assert "left out: no package index" in caplog.text


@pytest.mark.parametrize("is_together", [True, False])
def test_where_hivemind_hangs_the_rest_is_measured_without_it(
    played: Played, is_together: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    played.hangs_at = "NONE" if not is_together else "UNIFORM_8BIT"
    if not is_together:
        free = float(psutil.virtual_memory().available)
        monkeypatch.setattr(round, "need", lambda size: (0.7 * free, 0.7 * free))
    found = measure()
    assert [len(found.ours[codec]) for codec in ("none", "int8")] == [2, 2]
    assert len(found.gloo["int8"]) == 2
    assert set(found.hivemind) == {"NONE", "UNIFORM_8BIT"} - {played.hangs_at}
    assert "no answer within 180 s" in caplog.text


def killed_lines(kills: int) -> dict[str, Line]:
    async def scenario() -> dict[str, Line]:
        return {f"{line.case}|{line.peer}": line async for line in killed.killed(TWO, HERE, kills)}

    return run(scenario())


def test_a_kill_stands_beside_the_same_round_without_one(played: Played) -> None:
    lines: dict[str, Any] = killed_lines(2)
    name = "2 siblings, 1.04858 M, none, one killed in mid-round"
    own = lines[f"{name}|the same without a kill"]
    assert (own.value, own.peer_value, own.goal, own.ok) == (1.5, 1.0, "ratio >= 0.5", True)
    assert lines[f"{name}|hivemind, NONE, one killed"].peer_value == 9.0
    equal = lines[f"{name}: the others succeed, with equal bits|hivemind, NONE"]
    assert (equal.value, equal.peer_value, equal.ok) == (1.0, 0.0, True)
    # A third of what one of the two sends; half of the exchange that began a second after the call.
    assert played.asked.count("kill after 133") == 2
    assert played.asked.count("NONE killed after 1") == 2
    assert played.asked.count("replace") == 1, "the group goes on with another process"


def test_a_kill_is_shown_without_hivemind_too(played: Played, caplog: pytest.LogCaptureFixture) -> None:
    played.is_there = False
    assert not any("hivemind" in key for key in killed_lines(1))
    assert "left out: no package index" in caplog.text
