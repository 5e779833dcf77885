"""What hivemind's processes say becomes a run; the processes are played."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bench.averagers import Averagers
from bench.hivemind import PeerError
from bench.machines import HERE
from tests.support import run


class Played:
    """A peer that answers as it was told."""

    def __init__(self, rank: int, group: int) -> None:
        self.pid = os.getpid()
        self.rank = rank
        self.size = group
        self.digest = "same"
        self.asked: list[str] = []

    async def ask(self, method: str, *arguments: Any, seconds: float = 0.0) -> Any:
        self.asked.append(method)
        match method:
            case "average" if len(arguments) > 3:
                raise PeerError("it has killed itself")
            case "average":
                began = 10.0 + self.rank
                times = {"began": began, "loaded": began + 0.5, "matched": began + 1.5, "averaged": 14.0 + self.rank}
                return {**times, "ended": 15.0 + self.rank, "size": self.size}
            case "digest":
                return self.digest
            case "error":
                return 0.01 * self.rank
        return None


def peers(number: int) -> list[Played]:
    return [Played(rank, number) for rank in range(number)]


def averagers(played: list[Played]) -> Averagers:
    return Averagers(played, [HERE])  # type: ignore[arg-type]


def test_a_round_lasts_from_the_first_call_to_the_last_return() -> None:
    played = peers(3)
    found = run(averagers(played).round("NONE", is_watched=True))
    assert found.seconds == 7.0
    assert found.formed == -1.0, "from the last call to the first exchange"
    assert found.averaging == 5.5, "from when the first has loaded to when the last has the average"
    assert found.has_succeeded
    assert found.num_results == 1
    assert played[0].asked == ["begin", "average", "digest"], "anchors are put in place before"


@pytest.mark.parametrize(("size", "digest", "expected"), [(2, "same", (False, 1)), (3, "other", (True, 2))])
def test_a_round_that_missed_somebody_has_failed_and_different_results_are_counted(
    size: int, digest: str, expected: tuple[bool, int]
) -> None:
    played = peers(3)
    played[1].size, played[2].digest = size, digest
    found = run(averagers(played).round("NONE"))
    assert (found.has_succeeded, found.num_results) == expected


def test_after_a_death_only_the_others_count() -> None:
    played = peers(3)
    played[2].digest = "never read"
    played[0].size = played[1].size = 2
    found = run(averagers(played).kill("NONE", 0.5))
    assert found.has_succeeded
    assert found.num_results == 1
    assert found.seconds == 6.0
    assert "digest" not in played[2].asked


def test_the_error_is_that_of_the_peer_where_it_is_largest() -> None:
    assert run(averagers(peers(3)).error("NONE")) == 0.02
