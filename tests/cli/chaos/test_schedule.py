"""The schedule: what was asked for, no more and no less, far enough apart, and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.cli.chaos.schedule import Fault, Kind, choose, parse_faults, schedule, shortest_gap
from distqat.errors import ConfigError

WANTED = {Kind.KILL: 10, Kind.STOP: 5, Kind.CUT: 3}


def test_a_request_is_read() -> None:
    assert parse_faults("kill=10,stop=5, cut=3") == WANTED
    assert parse_faults("kill-head=1") == {Kind.KILL_HEAD: 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("burn=1", "no fault 'burn'; there are: cut, kill, kill-head, stop"),
        ("", "no fault ''"),
        ("kill", "'kill' is not kill=NUMBER"),
        ("kill=0", "'kill=0' is not kill=NUMBER"),
        ("kill=-1", "'kill=-1' is not kill=NUMBER"),
        ("kill=1,kill=2", "'kill' is there twice"),
    ],
)
def test_a_wrong_request_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_faults(text)


@given(
    st.dictionaries(st.sampled_from(list(Kind)), st.integers(1, 20), min_size=1), st.integers(0, 99), st.integers(5, 20)
)
def test_all_of_them_come_in_time_and_apart(wanted: dict[Kind, int], seed: int, num_daemons: int) -> None:
    gap, seconds = shortest_gap(num_daemons), 900.0
    faults = schedule(wanted, seconds, seed, num_daemons, lease=3.0)
    assert Counter(fault.kind for fault in faults) == wanted
    assert [fault.number for fault in faults] == list(range(len(faults)))
    times = [fault.at for fault in faults]
    assert times[0] >= 0
    assert times[-1] <= seconds - gap + 1e-6
    assert all(after - before >= gap - 1e-6 for before, after in pairwise(times))
    assert all(fault.seconds > 3.0 for fault in faults if fault.kind in (Kind.STOP, Kind.CUT))
    assert not any(fault.hits_spare for fault in faults if fault.kind is Kind.KILL_HEAD)


def test_the_seed_decides() -> None:
    first, again, other = (schedule(WANTED, 300.0, seed, 6, 3.0) for seed in (7, 7, 8))
    assert first == again != other


def test_cuts_are_silent_and_refused_in_turn() -> None:
    cuts = [fault.is_silent for fault in schedule({Kind.CUT: 4}, 300.0, 7, 6, 3.0)]
    assert cuts == [True, False, True, False]


def test_more_daemons_need_more_time_and_too_little_is_refused() -> None:
    assert shortest_gap(12) > shortest_gap(5)
    with pytest.raises(ConfigError, match=r"18 faults with 8 daemons need 1.8 minutes, 6 s"):
        schedule(WANTED, 60.0, 7, 8, 3.0)


def fault(kind: Kind = Kind.KILL, draw: float = 0.0, hits_spare: bool = False) -> Fault:
    return Fault(0, kind, 0.0, 1.0, draw, hits_spare=hits_spare)


def test_the_victim_has_a_stage_or_is_a_spare_as_drawn() -> None:
    seated, spares = ["b", "a"], ["s"]
    assert [choose(fault(draw=draw), seated, spares, "head") for draw in (0.0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]
    assert choose(fault(hits_spare=True), seated, spares, "head") == "s"
    assert choose(fault(hits_spare=True), seated, [], "head") == "a"
    assert choose(fault(Kind.KILL_HEAD), seated, spares, "head") == "head"
    assert choose(fault(), [], spares, "head") is None
