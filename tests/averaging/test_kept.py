from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distqat.averaging import kept, outer
from distqat.averaging.kept import Shelf
from distqat.averaging.phases import phase
from distqat.errors import MessageError, StateError
from distqat.wire import codecs
from tests.averaging.state.stock import SYNC, make_state, rounds

CODECS = ("none", "bf16", "int8", "int4")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("begin", [0, 1, 5])
def test_rounds_replayed_end_with_the_state_of_those_who_committed_them(codec: str, begin: int) -> None:
    """Warm-up rounds of all fragments and DiLoCo rounds of one after the other."""
    state = make_state(number=begin)
    for missed, after in rounds(state, 5, codec):
        state = kept.replay(state, missed, phase(missed.round, SYNC))
        assert state.digest == after.digest
        assert all(torch.equal(one.anchor, other.anchor) for one, other in zip(state.parts, after.parts, strict=True))
    assert state.round == begin + 5


def test_a_replayed_round_is_what_the_outer_step_says() -> None:
    state = make_state(number=2)
    [(missed, after)] = rounds(state, 1, "int8")
    how = phase(2, SYNC)
    assert not how.is_plain
    [index] = how.fragments
    average = codecs.find("int8").decode(missed.payload, torch.float32, (state.shapes[index].num_elements,))
    expected = outer.apply(state, average, how, missed.members, "int8")
    assert expected.digest == after.digest == missed.digest
    assert [one is other for one, other in zip(state.parts, after.parts, strict=True)].count(True) == 2


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda k: replace(k, digest="0" * 32), StateError, "does not end with its digest"),
        (lambda k: replace(k, members=k.members[:1]), StateError, "does not end with its digest"),
        (lambda k: replace(k, before="0" * 32), StateError, "belongs to another state"),
        (lambda k: replace(k, round=5), StateError, "belongs to another state"),
        (lambda k: replace(k, codec="int16"), MessageError, "unknown codec 'int16'"),
        (
            lambda k: replace(k, codec="int8"),
            MessageError,
            "an average of 260 elements that takes 1040 bytes with int8",
        ),
        (
            lambda k: replace(k, payload=k.payload[:-4]),
            MessageError,
            "an average of 260 elements that takes 1036 bytes",
        ),
    ],
)
def test_an_average_that_is_not_what_it_says_is_refused(change, error, reason: str) -> None:  # type: ignore[no-untyped-def]
    state = make_state(number=4)
    [(missed, _)] = rounds(state, 1)
    with pytest.raises(error, match=reason):
        kept.replay(state, change(missed), phase(4, SYNC))


def test_the_shelf_keeps_the_latest_rounds() -> None:
    shelf = Shelf(3, 1 << 30)
    history = [one for one, _ in rounds(make_state(), 5)]
    for one in history:
        shelf.append(one)
    assert list(shelf) == history[-3:]
    assert shelf.since(history[2].round, history[2].before) == tuple(history[2:])
    assert shelf.since(history[4].round, history[4].before) == (history[4],)
    # Too old, from another state, and of the future.
    assert shelf.since(history[1].round, history[1].before) == ()
    assert shelf.since(history[3].round, "0" * 32) == ()
    assert shelf.since(history[4].round + 1, history[4].digest) == ()


def test_the_shelf_keeps_no_more_bytes_than_allowed() -> None:
    history = [one for one, _ in rounds(make_state(), 6)]
    for limit in (0, 1000, 2000, 5000):
        shelf = Shelf(4, limit)
        for one in history:
            shelf.append(one)
        assert shelf.nbytes <= limit
        assert list(shelf) == history[len(history) - len(shelf) :]
    assert not Shelf(0, 1 << 30).since(0, "")


def test_a_shelf_has_no_gap() -> None:
    shelf = Shelf(4, 1 << 30)
    history = [one for one, _ in rounds(make_state(), 4)]
    for one in (history[0], history[1], history[3]):
        shelf.append(one)
    assert list(shelf) == [history[3]]


def test_repr_shows_what_is_kept() -> None:
    [(missed, _)] = rounds(make_state(number=4), 1, "int8")
    shelf = Shelf(4, 1 << 20)
    shelf.append(missed)
    assert repr(missed) == f"<Kept round 4 int8 {len(missed.payload)} bytes>"
    assert repr(shelf) == f"<Shelf 1 rounds, {len(missed.payload)} bytes>"
