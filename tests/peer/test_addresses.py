"""Which address others are told to dial."""

from __future__ import annotations

import pytest

from distqat.ids import Endpoint
from distqat.peer.addresses import announced

LOOPBACK = Endpoint("127.0.0.1", 7000)


def test_what_is_asked_for_counts() -> None:
    assert announced("peer.example:80", LOOPBACK, ()) == Endpoint("peer.example", 80)
    assert announced("peer.example:0", LOOPBACK, ()) == Endpoint("peer.example", 7000)


def test_a_listen_host_that_can_be_dialled_is_told() -> None:
    assert announced("", LOOPBACK, (Endpoint("127.0.0.1", 1),)) == LOOPBACK


@pytest.mark.parametrize("anywhere", ["0.0.0.0", "::"])
def test_listening_everywhere_the_interface_that_leads_to_the_swarm_is_told(anywhere: str) -> None:
    assert announced("", Endpoint(anywhere, 7000), (Endpoint("127.0.0.1", 9),)) == LOOPBACK


def test_without_any_interface_the_loopback_is_told() -> None:
    told = announced("", Endpoint("0.0.0.0", 7000), (Endpoint("no-such-host.invalid", 9),))
    assert told.port == 7000
    assert told.host != "0.0.0.0"
