from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import rendezvous
from distqat.ids import PeerId
from tests.averaging.words import round_ref

PEERS = [PeerId(f"{index:040x}") for index in range(8)]


@given(st.permutations(PEERS), st.integers(0, 1000))
def test_everyone_comes_to_the_same_order(peers: list[PeerId], number: int) -> None:
    order = rendezvous.order(round_ref(number), peers)
    assert order == rendezvous.order(round_ref(number), PEERS)
    assert sorted(order) == PEERS
    assert all(rendezvous.outranks(round_ref(number), *pair) for pair in itertools.pairwise(order))
    assert not rendezvous.outranks(round_ref(number), order[0], order[0])


@given(st.integers(0, 1000), st.sampled_from(PEERS))
def test_without_one_the_others_keep_their_order(number: int, gone: PeerId) -> None:
    order = rendezvous.order(round_ref(number), PEERS)
    order.remove(gone)
    assert rendezvous.order(round_ref(number), [peer for peer in PEERS if peer != gone]) == order


def test_nobody_leads_for_good() -> None:
    leaders = Counter(rendezvous.order(round_ref(number), PEERS)[0] for number in range(800))
    assert min(leaders[peer] for peer in PEERS) > 60
