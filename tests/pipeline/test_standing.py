"""The decisions that keep every step exactly once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distqat.errors import MessageError, StaleError
from distqat.ids import MicrobatchId, PipelineId, StepRef
from distqat.model.agreement import LossScale, Verdict
from distqat.model.stage import Stage
from distqat.pipeline.standing import MAX_PIPELINES, Held, Standing, StepSize, has_to_apply, step_to_pass_on
from distqat.sections import OptimizerSection
from tests.pipeline.swarm import TINY

P0, P1 = PipelineId("p0"), PipelineId("p1")


@pytest.mark.parametrize(
    ("held", "passed_on"),
    [
        (Held(None), 5),
        (Held(5), 5),
        (Held(5, complete=6), 5),
        (Held(6), 6),
        (Held(4, complete=5), 5),
        (Held(3), 5),
    ],
)
def test_what_is_passed_on(held: Held, passed_on: int) -> None:
    assert step_to_pass_on(5, held) == passed_on


@pytest.mark.parametrize(
    ("held", "applies"),
    [
        (Held(None), False),
        (Held(5), False),
        (Held(5, complete=6), False),
        (Held(4, complete=5), True),
        (Held(3, complete=4), False),
        (Held(0), False),
    ],
)
def test_what_is_applied(held: Held, applies: bool) -> None:
    assert has_to_apply(5, held) is applies


@pytest.mark.parametrize("held", [Held(4), Held(4, complete=4), Held(7)])
def test_what_is_too_far_apart_names_both(held: Held) -> None:
    for decide in (step_to_pass_on, has_to_apply):
        with pytest.raises(StaleError, match=rf"route is at step 5, the stage has committed step {held.version}"):
            decide(5, held)


def test_a_stage_that_is_ahead_cannot_be_taken_back() -> None:
    with pytest.raises(StaleError):
        has_to_apply(5, Held(6))


def work(stage: Stage, standing: Standing, step: int, indices: range, count: int = 2) -> None:
    """Microbatches of a step through a stage that is a whole model."""
    batch = TINY.batch(step)
    for index in indices:
        standing.note_size(step, StepSize(count, 4))
        stage.loss(MicrobatchId(step, index), batch["inputs"], {"labels": batch["labels"]}, 4)


def test_complete_gradients_of_the_step_are_applied_and_owed_to_the_host() -> None:
    stage, standing = TINY.whole(), Standing()
    standing.reach(stage, P0, 0)
    work(stage, standing, 1, range(2))
    assert standing.held(stage, P0) == Held(0, complete=1)
    standing.reach(stage, P0, 1)
    assert stage.version == 1
    assert list(standing.owed) == [(StepRef(P0, 1), 4)]
    # Another pipeline comes before the host has heard of it: it stays a step of its own.
    standing.reach(stage, P1, 7)
    assert list(standing.owed) == [(StepRef(P0, 1), 4)]
    assert standing.size(1) is None


def test_incomplete_gradients_are_dropped() -> None:
    stage, standing = TINY.whole(), Standing()
    standing.reach(stage, P0, 0)
    work(stage, standing, 1, range(1))
    assert standing.held(stage, P0) == Held(0)
    with pytest.raises(StaleError):
        standing.reach(stage, P0, 1)
    assert stage.pending is not None
    standing.reach(stage, P0, 0)
    assert stage.pending is None
    assert not standing.owed


def test_gradients_of_another_step_are_dropped() -> None:
    stage, standing = TINY.whole(), Standing()
    standing.reach(stage, P0, 0)
    work(stage, standing, 1, range(2))
    standing.reach(stage, P0, 0)
    assert stage.pending is None
    assert stage.version == 0


def test_a_newcomer_takes_the_number() -> None:
    stage, standing = TINY.whole(), Standing()
    assert standing.held(stage, P0) == Held(None)
    standing.reach(stage, P0, 17)
    assert stage.version == 17
    assert standing.held(stage, P0) == Held(17)
    # Another pipeline counts its own steps, and another stage has none.
    assert standing.held(stage, P1) == Held(None)
    assert standing.held(TINY.whole(), P0) == Held(None)


def test_who_was_away_while_another_had_its_seat_takes_the_number() -> None:
    stage, standing = TINY.whole(), Standing()
    standing.reach(stage, P0, 3)
    work(stage, standing, 4, range(2))
    standing.reach(stage, P0, 6)
    assert stage.pending is None
    assert standing.held(stage, P0) == Held(6)
    assert not standing.owed


def test_older_epochs_are_refused_for_each_pipeline() -> None:
    standing = Standing()
    standing.note_epoch(P0, 3)
    standing.note_epoch(P0, 3)
    standing.note_epoch(P1, 1)
    with pytest.raises(StaleError, match="epoch 2 of pipeline p0 is older than epoch 3"):
        standing.note_epoch(P0, 2)
    standing.note_epoch(P0, 4)


def test_the_memory_of_epochs_is_bounded() -> None:
    standing = Standing()
    standing.note_epoch(P0, 3)
    for number in range(MAX_PIPELINES):
        standing.note_epoch(PipelineId(f"other{number}"), 1)
    standing.note_epoch(P0, 1)


def test_a_step_has_one_size() -> None:
    standing = Standing()
    standing.note_size(1, StepSize(2, 8))
    assert standing.size(1) == StepSize(2, 8)
    with pytest.raises(MessageError, match="step 1"):
        standing.note_size(1, StepSize(3, 8))


CLIPPED = Verdict(0.25, LossScale(8.0, 5))


def test_a_step_that_is_applied_late_is_applied_as_was_decided() -> None:
    recipe = replace(TINY, optimizer=OptimizerSection(name="sgd"))
    late, prompt = recipe.whole(), recipe.whole()
    for stage, standing in ((late, Standing()), (prompt, Standing())):
        standing.reach(stage, P0, 0)
        work(stage, standing, 1, range(2))
        if stage is late:
            standing.reach(stage, P0, 1, CLIPPED)
        else:
            standing.apply(stage, 1, CLIPPED)
        assert standing.verdict == CLIPPED
        assert stage.loss_scale == 8.0
    assert torch.equal(late.flatten(), prompt.flatten())
    plain = recipe.whole()
    standing = Standing()
    standing.reach(plain, P0, 0)
    work(plain, standing, 1, range(2))
    standing.reach(plain, P0, 1)
    assert not torch.equal(plain.flatten(), late.flatten())


def test_a_newcomer_takes_the_loss_scale_too() -> None:
    stage, standing = TINY.whole(), Standing()
    standing.reach(stage, P0, 17, CLIPPED)
    assert (stage.version, stage.loss_scale, standing.verdict) == (17, 8.0, CLIPPED)


def test_the_clock_of_the_learning_rate_is_part_of_the_size() -> None:
    standing = Standing()
    standing.note_size(1, StepSize(2, 8, 0.5))
    with pytest.raises(MessageError, match="step 1"):
        standing.note_size(1, StepSize(2, 8, 0.25))
