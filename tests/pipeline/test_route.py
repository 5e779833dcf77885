"""Routes are chains; a break has a name."""

from __future__ import annotations

import pytest

from distqat.config import RunConfig
from distqat.errors import RouteError, StaleError, TensorError
from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex
from distqat.pipeline.route import HopError, Limits, Route, first_error, patience
from distqat.sections import OptimizerSection, PipelineSection, Precision, TrainSection
from distqat.wire_sections import WireSection


def seat(stage: int, peer: str | None = None) -> Seat:
    return Seat(PeerId(peer or f"peer{stage}"), Endpoint("host", 1000 + stage), StageIndex(stage))


def test_a_chain_is_taken_and_says_who_is_in_it() -> None:
    route = Route(PipelineId("p0"), 3, (seat(0), seat(1)))
    assert str(route) == "pipeline p0 epoch 3: stage 0 on peer0 (host:1000), stage 1 on peer1 (host:1001)"


@pytest.mark.parametrize(
    ("seats", "words"),
    [
        ((), "at least one seat"),
        ((seat(1),), "stages \\[1\\]"),
        ((seat(0), seat(2)), "stages \\[0, 2\\]"),
        ((seat(1), seat(0)), "stages \\[1, 0\\]"),
        ((seat(0, "a"), seat(1, "a")), "one peer has two seats"),
    ],
)
def test_what_is_no_chain_is_refused(seats: tuple[Seat, ...], words: str) -> None:
    with pytest.raises(RouteError, match=words):
        Route(PipelineId("p0"), 1, seats)


def test_epochs_are_counted_from_one() -> None:
    with pytest.raises(RouteError, match="from 1"):
        Route(PipelineId("p0"), 0, (seat(0),))


def test_the_first_error_of_ours_is_found_in_a_group() -> None:
    stale = StaleError("old")
    assert first_error(ExceptionGroup("", [KeyError(), ExceptionGroup("", [stale, TensorError("x")])])) is stale
    assert first_error(KeyError()) is None


def test_a_break_can_be_raised_again() -> None:
    error = HopError("stage 1 is gone", PeerId("b"), "UnreachableError")
    again = error.again()
    assert again is not error
    assert (again.reason, again.peer, again.kind) == ("stage 1 is gone", "b", "UnreachableError")
    assert again.retriable


def test_who_stands_next_to_a_silent_peer_loses_patience_first() -> None:
    waits = [patience(2.0, 4, stage) for stage in range(4)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] == 2.0
    assert waits[0] <= 3.0
    assert len(set(waits)) == 4


def test_limits_follow_the_settings() -> None:
    config = RunConfig(
        wire=WireSection(activations="int8", compression="off"),
        pipeline=PipelineSection(max_in_flight=7),
        optimizer=OptimizerSection(clip_norm=1.0),
        train=TrainSection(precision="bf16"),
    )
    limits = Limits.of(config)
    assert limits.stall == config.lease.min
    assert limits.settle > config.sync.max_wait
    assert (limits.wire, limits.optimizer, limits.precision) == (config.wire, config.optimizer, "bf16")
    assert limits.max_in_flight == 7


@pytest.mark.parametrize(
    ("clip", "precision", "needs"),
    [(0.0, "fp32", False), (0.0, "bf16", False), (0.5, "fp32", True), (0.0, "fp16", True)],
)
def test_norms_are_needed_for_clipping_and_for_the_loss_scale(clip: float, precision: Precision, needs: bool) -> None:
    assert Limits(optimizer=OptimizerSection(clip_norm=clip), precision=precision).needs_norms is needs
