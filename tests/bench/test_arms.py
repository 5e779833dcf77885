"""The arms are different ways to train the same model on the same samples."""

from __future__ import annotations

from bench.arms import BATCH, FLOORS, SYNCHRONOUS, WITHOUT, Way, arm, ways
from bench.diloco import FULL, QUICK

WARMUP = 200


def test_all_that_the_issue_of_the_bench_asks_for_is_there() -> None:
    found = set(ways())
    for replicas in (2, 4):
        for codec in ("none", "int8", "int4", "int2"):
            assert {Way(replicas, codec, is_overlapped) for is_overlapped in (False, True)} <= found
    assert {Way(1), Way(1, "none", True)} <= found
    assert {way.variant for way in found} == {"", WITHOUT, "eager", "late"}


def test_arms_have_different_names_and_settings() -> None:
    arms = FULL.arms()
    assert len({one.name for one in arms}) == len(arms)
    assert len({one.described(1, 1000) for one in arms}) == len(arms)
    assert arms[0].described(1, 1000) != arms[0].described(2, 1000) != arms[0].described(2, 500)


def test_all_see_as_many_samples_but_for_the_floors() -> None:
    for one in FULL.arms():
        assert one.samples * one.replicas == (BATCH if one not in FLOORS.values() else BATCH // one.share)
    assert [floor.samples for floor in FLOORS.values()] == [BATCH // 2, BATCH // 4]


def test_a_way_becomes_settings() -> None:
    plain = arm(Way(4, "int8"), WARMUP).sync
    assert plain is not None
    assert (plain.codec, plain.warmup_steps, plain.inner_steps) == ("int8", WARMUP, 25)
    assert (plain.outer_learning_rate, plain.outer_momentum, plain.overlap, plain.fragments) == (0.6, 0.9, 0, 1)
    beside = arm(Way(4, "int2", True), WARMUP).sync
    assert beside is not None
    assert beside.fragments > 1
    assert 0 < beside.overlap <= beside.inner_steps / 20
    assert beside.error_feedback == "auto"
    without = arm(Way(4, "int2", variant=WITHOUT), WARMUP).sync
    assert without is not None
    assert without.error_feedback == 0
    assert SYNCHRONOUS.sync is None


def test_names_say_what_is_done() -> None:
    assert str(Way(2, "int2", True)) == "k=2, int2 with feedback, overlapped"
    assert str(Way(4, "int2", variant=WITHOUT)) == "k=4, int2 without feedback, blocking"
    assert str(Way(4, variant="eager")) == "k=4, none, one round late, eager"


def test_the_quick_bench_is_a_part_of_the_whole() -> None:
    assert set(QUICK.ways) < set(FULL.ways)
    assert {one.name for one in QUICK.arms()} < {one.name for one in FULL.arms()}
