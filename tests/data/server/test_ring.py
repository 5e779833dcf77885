"""The ring, without memory or processes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.data.server.layout import Sizes
from distqat.data.server.ring import Grant, Job, Ring, Want

ADA, BOB = 1, 2


def a_ring(slots: int = 4, rows: int = 8, part: int = 4, budget: int = 1000, held_out: int = 20) -> Ring:
    return Ring(Sizes(slots, rows, part), budget, held_out)


def make_all(ring: Ring, fault: str = "") -> list[Job]:
    """What the ring wants, one after the other."""
    jobs = []
    while (job := ring.next_job()) is not None:
        jobs.append(job)
        ring.made(job, fault)
    return jobs


def get(ring: Ring, begin: int, end: int, holder: int = ADA, serial: int = 0, held_out: bool = False) -> Grant:
    ring.ask(Want(holder, serial or begin + 1, held_out, begin, end))
    make_all(ring)
    (grant,) = ring.settle()
    return grant


def spans(jobs: list[Job]) -> list[tuple[int, int]]:
    return [(job.begin, job.end) for job in jobs]


def test_nothing_is_made_before_somebody_asks() -> None:
    assert a_ring().next_job() is None


def test_what_is_asked_for_is_made_first_and_then_what_follows() -> None:
    ring = a_ring()
    ring.ask(Want(ADA, 1, False, 100, 104))
    # Slot of 96 to 104, of which the second part is wanted; half of the slots are filled ahead.
    assert spans(make_all(ring)) == [(100, 104), (104, 108), (108, 112), (112, 116), (116, 120)]
    (grant,) = ring.settle()
    assert (grant.row, grant.fault, grant.is_brief) == (4, "", False)
    assert ring.settle() == []


def test_it_goes_on_where_what_is_read_is_released() -> None:
    ring = a_ring(slots=4)
    seen = set()
    for begin in range(0, 200, 8):
        grant = get(ring, begin, begin + 8)
        seen.add(grant.slot)
        ring.release(ADA, grant.lease)
    assert seen == {0, 1, 2, 3}
    stats = ring.statistics()
    assert (stats.handed, stats.leased, stats.renewed) == (200, 0, 0)
    # Each sample once, and what is ahead.
    assert stats.made == 216


def test_a_slot_that_is_read_is_not_written_to() -> None:
    ring = a_ring(slots=4)
    held = get(ring, 0, 8)
    others = {get(ring, begin, begin + 8, BOB).slot for begin in range(8, 25, 8)}
    assert held.slot not in others
    # All four are read: who asks waits, and nothing is made.
    ring.ask(Want(BOB, 99, False, 40, 44))
    assert ring.next_job() is None
    assert ring.settle() == []
    ring.release(ADA, held.lease)
    job = ring.next_job()
    assert job is not None
    assert (job.slot, job.begin, job.renews) == (held.slot, 40, False)


def test_what_is_released_by_somebody_else_stays() -> None:
    ring = a_ring()
    grant = get(ring, 0, 4)
    ring.release(BOB, grant.lease)
    assert ring.statistics().leased == 1
    ring.release(ADA, grant.lease)
    ring.release(ADA, grant.lease)
    assert ring.statistics().leased == 0


def test_when_most_slots_are_read_they_are_to_be_copied() -> None:
    ring = a_ring(slots=4)
    assert [get(ring, begin, begin + 4).is_brief for begin in (0, 8, 16)] == [False, False, True]


def test_a_slot_that_a_lost_reader_may_still_read_gets_other_memory() -> None:
    ring = a_ring(slots=4)
    held = get(ring, 0, 8)
    ring.reclaim(ADA)
    assert ring.statistics().leased == 0
    # As long as it holds the same samples it may be read by others.
    again = get(ring, 0, 4, BOB)
    assert again.slot == held.slot
    ring.release(BOB, again.lease)
    jobs: list[Job] = []
    for begin in range(8, 200, 8):
        ring.ask(Want(BOB, begin, False, begin, begin + 8))
        jobs += make_all(ring)
        for grant in ring.settle():
            ring.release(BOB, grant.lease)
    assert [job.slot for job in jobs if job.renews] == [held.slot]
    assert ring.statistics().renewed == 1


def test_a_lost_reader_waits_for_nothing() -> None:
    ring = a_ring()
    ring.ask(Want(ADA, 1, False, 0, 4))
    ring.reclaim(ADA)
    make_all(ring)
    assert ring.settle() == []


def test_positions_that_were_given_back_are_made_again() -> None:
    ring = a_ring(slots=4)
    for begin in range(0, 400, 8):
        ring.release(ADA, get(ring, begin, begin + 8).lease)
    ring.ask(Want(BOB, 1, False, 5, 7))
    # Only the part in which they lie, and what is ahead stays ahead.
    assert spans(make_all(ring)) == [(4, 8)]
    (grant,) = ring.settle()
    assert grant.row == 5
    ring.release(BOB, grant.lease)
    assert get(ring, 400, 408).fault == ""


def test_held_out_samples_lie_beside_the_others() -> None:
    ring = a_ring(held_out=10)
    train, held_out = get(ring, 0, 8), get(ring, 8, 10, held_out=True)
    assert train.slot != held_out.slot
    assert held_out.row == 0


def test_nothing_is_made_beyond_the_end() -> None:
    ring = a_ring(budget=18)
    ring.ask(Want(ADA, 1, False, 0, 8))
    assert spans(make_all(ring))[-2:] == [(12, 16), (16, 18)]
    ring.ask(Want(ADA, 2, False, 16, 18))
    assert make_all(ring) == []


@pytest.mark.parametrize(
    ("begin", "end", "fault"),
    [(5, 5, "samples 5 to 5"), (996, 1001, "of 1000"), (7, 9, "do not lie in one slot of 8"), (-1, 2, "samples -1")],
)
def test_what_does_not_exist_is_said(begin: int, end: int, fault: str) -> None:
    assert fault in a_ring().fault_of(Want(ADA, 1, False, begin, end))
    assert not a_ring().fault_of(Want(ADA, 1, False, 0, 8))


def test_what_cannot_be_made_is_told_to_who_asks_and_tried_again_only_then() -> None:
    ring = a_ring()
    ring.ask(Want(ADA, 1, False, 0, 4))
    make_all(ring, "the image is broken")
    (grant,) = ring.settle()
    assert (grant.fault, grant.lease) == ("the image is broken", 0)
    assert [job.begin for job in make_all(ring)] == []
    assert get(ring, 0, 4, serial=2).fault == ""
    # What was made ahead in vain is told to whom it concerns.
    assert get(ring, 4, 8, serial=3).fault == "the image is broken"


@given(st.integers(0, 1 << 30), st.integers(4, 7), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_whoever_comes_and_goes_everybody_gets_what_it_asked_for(
    seed: int, slots: int, rows: int, part: int, holders: int
) -> None:
    """Against the memory itself: what a reader sees never changes while it may read."""
    draw = random.Random(seed)
    budget, held_out = 97, 23
    ring = Ring(Sizes(slots, rows, min(part, rows)), budget, held_out)
    memory: list[dict[int, tuple[bool, int]]] = [{} for _ in range(slots)]
    reading: list[tuple[int, Grant, dict[int, tuple[bool, int]]]] = []  # Also those of lost readers.
    under_way: list[Job] = []
    waiting: dict[int, Want] = {}
    for serial in range(1, 120):
        what = draw.random()
        if what < 0.4:
            is_held_out = draw.random() < 0.2
            begin = draw.randrange(held_out if is_held_out else budget)
            end = min(begin // rows * rows + rows, held_out if is_held_out else budget)
            want = Want(draw.randrange(holders), serial, is_held_out, begin, draw.randint(begin + 1, end))
            ring.ask(want)
            waiting[serial] = want
        elif what < 0.6 and (job := ring.next_job()) is not None:
            if job.renews:
                memory[job.slot] = {}
            under_way.append(job)
        elif what < 0.9 and under_way:
            job = under_way.pop(draw.randrange(len(under_way)))
            for number in range(job.begin, job.end):
                memory[job.slot][job.row + number - job.begin] = (job.held_out, number)
            ring.made(job)
        elif what < 0.95:
            lost = draw.randrange(holders)
            ring.reclaim(lost)
            waiting = {serial: want for serial, want in waiting.items() if want.holder != lost}
        elif reading:
            holder, grant, _ = reading.pop(draw.randrange(len(reading)))
            ring.release(holder, grant.lease)
        for grant in ring.settle():
            assert waiting.pop(grant.want.serial) == grant.want
            reading.append((grant.want.holder, grant, memory[grant.slot]))
        for _, grant, seen in reading:
            want = grant.want
            got = [seen[grant.row + place] for place in range(want.end - want.begin)]
            assert got == [(want.held_out, number) for number in range(want.begin, want.end)]
    for holder in range(holders):
        ring.reclaim(holder)
    assert ring.statistics().leased == 0
