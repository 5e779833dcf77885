"""Percentiles of seconds, and what a swarm is told for each kind of failure."""

from __future__ import annotations

from bench.recovery import KILLS, Recovery, lines
from bench.regroup import ALONE, Regrouping, contribution
from bench.regroup import lines as regrouped
from distqat.roles.status import ExpertStatus, PeerStatus, Receipt, RoleStatus


def recovered(*seconds: float, found: float = 0.1) -> list[Recovery]:
    return [Recovery(found, one) for one in seconds]


def test_percentiles_and_their_goals() -> None:
    found = lines(KILLS[0], recovered(0.5, 0.2, 4.0))
    assert [line.value for line in found] == [0.5, 4.0, 4.0]
    assert [line.ok for line in found] == [True, True, False]
    assert found[0].case == "SIGKILL, a warm spare, p50 of 3 kills"


def test_who_is_stopped_has_to_be_found_within_its_lease_and_a_half() -> None:
    in_time, late = lines(KILLS[2], recovered(4.0, found=3.4)), lines(KILLS[2], recovered(4.0, found=3.6))
    assert [line.ok for line in in_time] == [True] * 6
    assert [line.ok for line in late if line.goal == "value <= 3.5"] == [False, False]


def test_a_cold_spare_follows_nobody_and_has_a_donor() -> None:
    warm, cold, stopped = KILLS
    assert (warm.settings()["plan.followers"], warm.pipelines, warm.spares) == ("true", 1, 1)
    assert (cold.settings()["plan.followers"], cold.pipelines, cold.spares) == ("false", 2, 1)
    assert stopped.settings()["lease.min"] == "3.0"
    assert (ALONE.pipelines, ALONE.spares) == (2, 0)


def test_regrouping_has_a_goal_and_so_have_the_rounds_that_a_newcomer_misses() -> None:
    good, bad = Regrouping(1.0, 0.5, 1), Regrouping(6.0, 0.5, 2)
    assert all(line.ok for line in regrouped([good, good]))
    assert [line.case for line in regrouped([good, bad]) if not line.ok] == [
        "SIGKILL, no spare but a sibling pipeline, p99 of 2 kills",
        "rounds without a newcomer that has the state",
    ]


def test_a_newcomer_has_contributed_when_a_receipt_names_it() -> None:
    def status(*contributors: tuple[str, ...]) -> PeerStatus:
        receipts = tuple(Receipt(round=4 + number, contributors=names) for number, names in enumerate(contributors))
        return PeerStatus("bob", roles=(RoleStatus("expert", expert=ExpertStatus(receipts=receipts)),))

    assert contribution(PeerStatus("bob")) is None
    assert contribution(status(("alice",))) is None
    assert contribution(status(("alice",), ("alice", "bob"))) == 5
