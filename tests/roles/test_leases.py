"""Leases: silence, refusal, and answers without progress."""

from __future__ import annotations

from distqat.errors import DeadlineError, UnreachableError
from distqat.ids import PeerId
from distqat.roles.leases import Leases
from distqat.roles.status import PeerStatus

ALICE = PeerId("alice")


def test_an_answer_renews_the_lease() -> None:
    leases = Leases(3.0)
    assert leases.answered(ALICE, PeerStatus(), 0.0) is None
    assert leases.failed(ALICE, DeadlineError("slow"), 2.9) is None
    assert leases.answered(ALICE, PeerStatus(), 3.0) is None
    assert leases.failed(ALICE, DeadlineError("slow"), 5.9) is None
    assert ALICE in leases.statuses


def test_silence_longer_than_the_lease_is_a_loss_that_is_told_once() -> None:
    leases = Leases(3.0)
    leases.answered(ALICE, PeerStatus(), 0.0)
    loss = leases.failed(ALICE, DeadlineError("no answer in time"), 3.1)
    assert loss is not None
    assert (loss.peer, loss.kind) == (ALICE, "DeadlineError")
    assert "no answer in time" in loss.reason
    assert leases.failed(ALICE, DeadlineError("no answer in time"), 4.0) is None
    assert leases.history == [loss]
    assert not leases.statuses


def test_a_peer_where_nobody_listens_is_lost_at_once() -> None:
    leases = Leases(3.0)
    leases.answered(ALICE, PeerStatus(), 0.0)
    assert leases.failed(ALICE, UnreachableError("refused"), 0.1) is not None


def test_a_peer_that_answers_without_progress_is_lost() -> None:
    leases = Leases(3.0)
    assert leases.answered(ALICE, PeerStatus(idle_seconds=2.0), 0.0) is None
    loss = leases.answered(ALICE, PeerStatus(idle_seconds=3.5), 1.0)
    assert loss is not None
    assert "no progress" in loss.reason


def test_a_lost_peer_that_works_again_is_back_and_can_be_lost_again() -> None:
    leases = Leases(3.0)
    leases.answered(ALICE, PeerStatus(), 0.0)
    assert leases.failed(ALICE, UnreachableError("refused"), 1.0) is not None
    assert leases.answered(ALICE, PeerStatus(), 2.0) is None
    assert leases.failed(ALICE, UnreachableError("refused"), 3.0) is not None
    assert len(leases.history) == 2


def test_a_peer_that_left_in_good_order_is_forgotten_without_a_loss() -> None:
    leases = Leases(3.0)
    leases.answered(ALICE, PeerStatus(), 0.0)
    leases.forget(set())
    assert not leases.statuses
    assert not leases.history
