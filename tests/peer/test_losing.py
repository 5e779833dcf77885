"""What ends when a peer is lost, and what does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distqat.discovery.view import Snapshot
from distqat.ids import Endpoint, PeerId
from distqat.peer.peer import lose

ALICE, BOB = PeerId("a" * 40), PeerId("b" * 40)
HERE, THERE = Endpoint("host", 1), Endpoint("host", 2)


@pytest.mark.parametrize(
    ("others", "lost", "ended"),
    [
        ({}, (), [HERE]),
        ({BOB: THERE}, (), [HERE]),
        # It was started again under another name.
        ({BOB: HERE}, (), []),
        ({BOB: HERE}, (BOB,), [HERE]),
    ],
)
def test_what_is_under_way_to_who_has_the_address_now_goes_on(
    others: dict[PeerId, Endpoint], lost: tuple[PeerId, ...], ended: list[Endpoint]
) -> None:
    entries: Any = {
        peer: SimpleNamespace(record=SimpleNamespace(endpoint=at)) for peer, at in {ALICE: HERE, **others}.items()
    }
    marked: list[PeerId] = []
    broken: list[Endpoint] = []
    directory: Any = SimpleNamespace(
        mark_lost=lambda peer, reason: marked.append(peer),
        snapshot=lambda: Snapshot(peers=entries, lost=dict.fromkeys(lost, "silence")),
    )
    transport: Any = SimpleNamespace(break_off=lambda at, reason: broken.append(at))
    lose(directory, transport, ALICE, HERE, "silence")
    assert (marked, broken) == ([ALICE], ended)
