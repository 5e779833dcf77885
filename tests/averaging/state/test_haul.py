from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging.state.haul import AHEAD, FIRST_PACE, MOST_AHEAD, Haul
from distqat.averaging.state.snapshot import ChunkRef
from distqat.ids import PeerId

ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")


def chunks(count: int) -> list[ChunkRef]:
    return [ChunkRef(0, index) for index in range(count)]


def joined(count: int, *donors: PeerId) -> Haul:
    haul = Haul(chunks(count))
    for donor in donors:
        haul.join(donor)
    return haul


def ask(haul: Haul, donor: PeerId, now: float) -> list[int]:
    """All that the donor is asked for at this moment."""
    asked = []
    while (chunk := haul.next(donor, now)) is not None:
        asked.append(chunk.index)
    return asked


def test_a_donor_is_asked_for_one_chunk_first_and_then_ahead() -> None:
    haul = joined(10, ALICE, BOB)
    assert ask(haul, ALICE, 0.0) == [0]
    assert ask(haul, BOB, 0.0) == [1]
    assert haul.arrived(ALICE, ChunkRef(0, 0), 0.1)
    assert ask(haul, ALICE, 0.1) == [2, 3]
    assert AHEAD == 2


def test_a_donor_that_is_fast_is_asked_for_more_at_a_time_and_for_less_when_it_slows_down() -> None:
    haul, now, lengths = joined(60, ALICE), 0.0, []
    pending = ask(haul, ALICE, now)
    for seconds in (0.001, *(0.1 for _ in range(MOST_AHEAD))):
        now += seconds
        assert haul.arrived(ALICE, ChunkRef(0, pending.pop(0)), now)
        pending += ask(haul, ALICE, now)
        lengths.append(len(pending))
    assert lengths[0] == MOST_AHEAD
    assert lengths[-1] == AHEAD
    assert lengths == sorted(lengths, reverse=True)


def test_who_is_faster_gives_more() -> None:
    haul, pace, free = joined(60, ALICE, BOB), {ALICE: 0.1, BOB: 0.4}, {ALICE: 0.0, BOB: 0.0}
    queues: dict[PeerId, list[int]] = {ALICE: ask(haul, ALICE, 0.0), BOB: ask(haul, BOB, 0.0)}
    while not haul.is_done:
        donor = min((one for one in free if queues[one]), key=lambda one: free[one] + pace[one])
        free[donor] += pace[donor]
        haul.arrived(donor, ChunkRef(0, queues[donor].pop(0)), free[donor])
        for one in queues:
            queues[one] += ask(haul, one, free[donor])
    assert 44 <= haul.given[ALICE] <= 50
    # The slow one has not kept everybody waiting at the end.
    assert max(free.values()) < 60 / (1 / 0.1 + 1 / 0.4) + 3 * 0.4


def test_a_donor_that_leaves_hands_its_chunks_to_the_others_first() -> None:
    haul = joined(6, ALICE, BOB)
    ask(haul, ALICE, 0.0)
    ask(haul, BOB, 0.0)
    haul.arrived(ALICE, ChunkRef(0, 0), 0.1)
    assert ask(haul, ALICE, 0.1) == [2, 3]
    haul.leave(ALICE)
    haul.arrived(BOB, ChunkRef(0, 1), 0.2)
    assert ask(haul, BOB, 0.2) == [2, 3]
    assert repr(haul) == "<Haul 4 chunks left, 2 of them asked of nobody>"


def test_what_a_slow_donor_holds_at_the_end_is_taken_over_and_counts_once() -> None:
    haul = joined(4, ALICE, BOB)
    ask(haul, ALICE, 0.0)
    ask(haul, BOB, 0.0)
    haul.arrived(BOB, ChunkRef(0, 1), 0.1)
    assert ask(haul, BOB, 0.1) == [2, 3]
    haul.arrived(BOB, ChunkRef(0, 2), 0.2)
    haul.arrived(BOB, ChunkRef(0, 3), 0.3)
    # Twice the time that a chunk takes here has gone by.
    assert ask(haul, BOB, 0.3) == [0]
    assert ask(haul, BOB, 0.3) == []
    assert haul.arrived(BOB, ChunkRef(0, 0), 0.4)
    assert haul.is_done
    assert not haul.arrived(ALICE, ChunkRef(0, 0), 0.5)
    assert haul.given == {BOB: 4}


def test_nothing_is_taken_over_from_a_donor_that_is_as_fast() -> None:
    haul = joined(4, ALICE, BOB)
    for donor, index in ((ALICE, 0), (BOB, 1)):
        ask(haul, donor, 0.0)
        haul.arrived(donor, ChunkRef(0, index), 1.0)
    assert ask(haul, ALICE, 1.0) == [2, 3]
    assert ask(haul, BOB, 1.5) == []
    # But once it is late it is.
    assert ask(haul, BOB, 3.5) == [2]


def test_a_first_chunk_that_does_not_come_is_asked_of_another_one() -> None:
    haul = joined(1, ALICE, BOB)
    assert ask(haul, ALICE, 0.0) == [0]
    assert ask(haul, BOB, FIRST_PACE) == []
    assert ask(haul, BOB, 2 * FIRST_PACE + 0.01) == [0]


@given(
    st.integers(0, 30), st.lists(st.tuples(st.sampled_from((ALICE, BOB, CAROL)), st.sampled_from("anl")), max_size=60)
)
def test_every_chunk_counts_once_whatever_happens(count: int, events: list[tuple[PeerId, str]]) -> None:
    """Asks, arrivals and departures in any order; then one donor that stays brings the rest."""
    haul, counted, present = Haul(chunks(count)), Counter[ChunkRef](), set[PeerId]()
    pending: dict[PeerId, list[ChunkRef]] = {ALICE: [], BOB: [], CAROL: []}

    def bring(donor: PeerId, now: float) -> None:
        chunk = pending[donor].pop(0)
        assert haul.expects(donor, chunk)
        counted[chunk] += haul.arrived(donor, chunk, now)

    def step(donor: PeerId, what: str, now: float) -> None:
        if donor not in present:
            haul.join(donor)
            present.add(donor)
        elif what == "l":
            haul.leave(donor)
            present.discard(donor)
            pending[donor].clear()
        elif what == "a" and pending[donor]:
            bring(donor, now)
        elif (chunk := haul.next(donor, now)) is not None:
            pending[donor].append(chunk)
            assert len(pending[donor]) <= MOST_AHEAD
        assert haul.is_waiting_for(donor) == bool(pending[donor]) if donor in present else True

    for now, (donor, what) in enumerate(events):
        step(donor, what, float(now))
    for donor in present - {ALICE}:
        haul.leave(donor)
    for now in range(len(events), len(events) + 3 * count + 3):
        step(ALICE, "a" if pending[ALICE] else "n", float(now))
    assert haul.is_done
    assert counted == Counter(chunks(count))
    assert sum(haul.given.values()) == count
