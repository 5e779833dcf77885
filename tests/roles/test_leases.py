"""Leases: silence, refusal, and answers without progress."""

from __future__ import annotations

from dataclasses import replace

from distqat.errors import DeadlineError, UnreachableError
from distqat.ids import PeerId
from distqat.roles.leases import Leases
from distqat.roles.status import Lease, PeerStatus

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


def test_a_lease_grows_with_the_longest_work_that_the_peer_has_reported_and_shrinks_again() -> None:
    leases = Leases(3.0)
    slow = PeerStatus(work_seconds=2.0)
    assert leases.length(ALICE) == 3.0
    assert leases.answered(ALICE, slow, 0.0) is None
    assert leases.length(ALICE) == 8.0
    assert leases.failed(ALICE, DeadlineError("slow"), 7.9) is None
    assert leases.answered(ALICE, replace(slow, idle_seconds=7.9), 7.9) is None
    assert leases.failed(ALICE, DeadlineError("slow"), 16.0) is not None
    assert leases.answered(ALICE, PeerStatus(work_seconds=0.1), 17.0) is None
    assert leases.length(ALICE) == 3.0


def test_whoever_asks_waits_for_what_is_left_of_the_lease() -> None:
    leases = Leases(3.0)
    assert leases.left(ALICE, 5.0) == 3.0
    leases.answered(ALICE, PeerStatus(), 0.0)
    assert leases.left(ALICE, 0.5) == 2.5
    # The deadline is over when the lease is, or a little before: it is a loss, not another try.
    assert leases.failed(ALICE, DeadlineError("no answer in time"), 2.995) is not None
    leases.answered(ALICE, PeerStatus(), 10.0)
    assert leases.left(ALICE, 14.0) == 0.5


def test_leases_show_how_old_and_how_long_they_are() -> None:
    leases = Leases(3.0)
    leases.answered(ALICE, PeerStatus(), 10.0)
    leases.answered(PeerId("bob"), PeerStatus(work_seconds=2.0), 11.0)
    assert leases.ages(11.5) == (Lease(ALICE, 1.5, 3.0), Lease("bob", 0.5, 8.0))
    leases.failed(ALICE, UnreachableError("refused"), 12.0)
    assert [lease.peer for lease in leases.ages(12.0)] == ["bob"]


def test_how_a_peer_was_lost_is_told() -> None:
    leases = Leases(3.0)
    losses = [
        leases.failed(PeerId("cut"), UnreachableError("refused"), 0.0),
        leases.answered(PeerId("stuck"), PeerStatus(idle_seconds=4.0), 0.0),
    ]
    leases.answered(ALICE, PeerStatus(), 0.0)
    losses.append(leases.failed(ALICE, DeadlineError("slow"), 9.0))
    assert [loss.how for loss in losses if loss] == ["broken connection", "stuck", "silence"]


def test_a_peer_that_comes_back_is_back_once() -> None:
    leases = Leases(3.0)
    leases.answered(ALICE, PeerStatus(), 0.0)
    assert not leases.is_back(ALICE)
    leases.failed(ALICE, UnreachableError("refused"), 1.0)
    assert not leases.is_back(ALICE)
    # Its record is gone meanwhile, and it is not asked for a while.
    leases.forget(set())
    leases.answered(ALICE, PeerStatus(), 5.0)
    assert leases.is_back(ALICE)
    assert not leases.is_back(ALICE)
