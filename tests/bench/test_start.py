"""A tiny real run of a bench."""

from __future__ import annotations

import pytest

from bench import start
from bench.case import Line
from tests.support import run


def test_start_measures_the_command_and_the_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "QUICK_RUNS", 1)

    async def lines() -> list[Line]:
        return [line async for line in start.bench(quick=True)]

    found = run(lines(), timeout=90.0)
    names = ["distqatctl --help", "distqatctl --help, CPU", "monitor says hello", "monitor says hello, CPU"]
    assert [line.case for line in found] == names
    assert all(line.bench == "start" and line.unit == "s" and line.runs == 1 for line in found)
    assert all(0 < line.value < 60 and line.peer_value for line in found)
