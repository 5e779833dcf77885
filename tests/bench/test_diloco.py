"""What is missing is trained, what is there is not; results become lines with the goals of the whole bench."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import diloco
from bench.arms import FLOORS, SYNCHRONOUS, WITHOUT, Arm, Way, arm
from bench.diloco import FULL, QUICK, Length, lines, train
from bench.results import Result, Results
from tests.support import run

LOSSES = {SYNCHRONOUS.name: 1.800, FLOORS[2].name: 1.95, FLOORS[4].name: 2.1}
LOSSES |= {str(Way(2)): 1.810, str(Way(4)): 1.870, str(Way(4, "int8")): 1.874, str(Way(4, "int4")): 1.877}
LOSSES |= {str(Way(4, "int2")): 1.890, str(Way(4, "int2", variant=WITHOUT)): 1.95}


def result(one: Arm, seed: int, steps: int) -> Result:
    loss = LOSSES.get(one.name, 1.85) + seed / 100
    return Result(one.name, seed, steps, one.described(seed, steps), loss, 5e6, 32, 135_000, 30.0)


class Played:
    """A learner that knows."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def ask(self, method: str, one: Arm, seed: int, steps: int) -> Result:
        assert method == "learn"
        self.asked.append((one.name, seed))
        return result(one, seed, steps)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Played]:
    opened: list[Played] = []

    @asynccontextmanager
    async def open_played(*_: Any) -> AsyncIterator[Played]:
        opened.append(Played())
        yield opened[-1]

    monkeypatch.setattr(diloco, "open_worker", open_played)
    return opened


def test_only_what_is_missing_is_trained(played: list[Played], tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    arms = [SYNCHRONOUS, arm(Way(2), 25)]
    Results(file).add(result(SYNCHRONOUS, 1, 100))
    run(train(arms, (1, 2), 100, Results(file)))
    assert {asked for one in played for asked in one.asked} == {
        (str(Way(2)), 1),
        (SYNCHRONOUS.name, 2),
        (str(Way(2)), 2),
    }
    assert len(Results(file)) == 4
    opened = len(played)
    run(train(arms, (1, 2), 100, Results(file)))
    assert len(played) == opened, "nothing is missing, so no process is started"


def results_of(length: Length) -> Results:
    results = Results(None)
    for one in length.arms():
        for seed in length.seeds:
            results.add(result(one, seed, length.steps))
    return results


def test_the_goals_are_those_of_the_whole_bench() -> None:
    shown = {line.case.removeprefix("pydocs, 1000 steps, 3 seeds, "): line for line in lines(FULL, results_of(FULL))}
    assert (shown[str(Way(2))].ok, shown[str(Way(2))].goal) == (False, "ratio >= 0.995025")
    assert (shown[str(Way(4))].ok, shown[str(Way(4))].goal) == (True, "ratio >= 0.961538")
    costs = {codec: shown[f"{Way(4, codec)}: more than in fp32, same seed"] for codec in ("int8", "int4", "int2")}
    assert [costs[codec].value for codec in costs] == [pytest.approx(0.004), pytest.approx(0.007), pytest.approx(0.02)]
    assert [costs[codec].ok for codec in costs] == [True, False, True]
    assert shown[f"{Way(4, 'int2', variant=WITHOUT)}: more than in fp32, same seed"].goal is None
    sent = shown[f"{Way(4, 'int8')}: sent and received by a replica"]
    assert sent.ratio == pytest.approx(1000 * 3 * 4 * 0.135 / 5)
    assert shown[FLOORS[4].name].peer == SYNCHRONOUS.name


def test_a_quick_run_has_no_goals() -> None:
    assert not [line for line in lines(QUICK, results_of(QUICK)) if line.goal]
