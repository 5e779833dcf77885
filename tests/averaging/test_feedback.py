from __future__ import annotations

from typing import Literal

import pytest
import torch

from distqat.averaging.attempt import Attempt
from distqat.averaging.contribution import Average, Contribution
from distqat.averaging.feedback import Feedback
from distqat.averaging.spans import Shape
from distqat.errors import MessageError
from distqat.sections import SyncSection
from distqat.wire import codecs
from tests.averaging import naive
from tests.averaging.members import party
from tests.averaging.vectors import drifted, normal, outer_state, phase_of
from tests.support import run_virtual

ELEMENTS = 1500
SAMPLES = (1, 3, 2)


def sync(feedback: Literal["auto"] | float) -> SyncSection:
    # An outer step of 1 without momentum: the anchor moves by the average.
    return SyncSection(
        warmup_steps=0, outer_learning_rate=1.0, outer_momentum=0.0, error_feedback=feedback, max_wait=4.0
    )


def learn(feedback: Literal["auto"] | float, codec: str, rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much the anchor has missed the mean of all that was learned, and what the siblings still hold of it."""

    async def scenario() -> tuple[torch.Tensor, torch.Tensor]:
        start = torch.zeros(ELEMENTS)
        true = torch.zeros(ELEMENTS, dtype=torch.float64)
        async with party([start] * 3, start, sync=sync(feedback)) as group:
            for number in range(rounds):
                for index, member in enumerate(group.members):
                    # Something of it is always the same: a bias would add up.
                    step = normal(ELEMENTS, 7 + index) + normal(ELEMENTS, 100 * number + index)
                    member.samples = SAMPLES[index]
                    member.local = member.state.anchor + step
                    true += step.double() * SAMPLES[index] / sum(SAMPLES)
                await group.average(codec)
            held = torch.zeros(ELEMENTS, dtype=torch.float64)
            for index, member in enumerate(group.members):
                residual = member.feedback.residual(0)
                if residual is not None:
                    held += torch.from_numpy(residual).double() * SAMPLES[index] / sum(SAMPLES)
            return true - group.members[0].state.anchor.double(), held

    return run_virtual(scenario(), debug=False)


@pytest.mark.parametrize("codec", ["int2", "int4"])
def test_nothing_is_lost(codec: str) -> None:
    """What has not arrived yet is what the siblings hold, of both shots, to the last bit but for rounding."""
    missed, held = learn(1.0, codec, 12)
    # A residual is what is still to be subtracted from the anchor: local values lie above it here.
    assert torch.allclose(missed, -held, atol=1e-4)
    assert float(held.abs().max()) > 0.01


def test_the_error_stays_bounded_and_without_feedback_it_grows() -> None:
    few, many = (float(learn(1.0, "int2", rounds)[0].norm()) for rounds in (8, 32))
    assert many < 1.5 * few
    without = [float(learn(0.0, "int2", rounds)[0].norm()) for rounds in (8, 32)]
    assert without[1] > 2.5 * without[0]
    assert many < without[1] / 3


def test_a_share_of_it_is_carried() -> None:
    """After one round the siblings hold half of what the anchor has missed."""
    missed, held = learn("auto", "int2", 1)
    assert torch.allclose(missed, -2 * held, atol=1e-5)
    # The rest is lost, but it does not grow as without.
    half, without = (float(learn(share, "int2", 32)[0].norm()) for share in (0.5, 0.0))
    assert half < 0.75 * without


@pytest.mark.parametrize(
    ("setting", "codecs_with_it"),
    [("auto", {"int2"}), (0.1, {"bf16", "int8", "int4", "int2"}), (0.0, set())],
)
def test_which_codecs_have_it(setting: Literal["auto"] | float, codecs_with_it: set[str]) -> None:
    assert {name for name in codecs.names() if name != "fp16" and Feedback(setting).share(name)} == codecs_with_it


def test_a_failed_attempt_leaves_every_bit_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        start = torch.zeros(ELEMENTS)
        locals_ = [normal(ELEMENTS, seed) for seed in range(3)]
        async with party(locals_, start) as group:
            await group.average("int2")
            for member, local in zip(group.members, locals_, strict=True):
                member.local = member.state.anchor + local
            before = [member.feedback.save()[0].clone() for member in group.members]
            failed = group.group("int2")
            encoded = [member.contribution.encode("int2") for member in group.members if member.contribution]
            monkeypatch.setattr(Attempt, "store", _break)
            assert not any(isinstance(result, Average) for result in await group.exchange(failed))
            monkeypatch.undo()
            # All of it went well, but it was never committed.
            again = await group.average("int2", commit=False)
            assert again.residual is not None
            for member, residual in zip(group.members, before, strict=True):
                assert torch.equal(member.feedback.save()[0], residual)
            # And the same bytes travel in the next attempt.
            assert all(
                member.contribution is not None and member.contribution.encode("int2") is data
                for member, data in zip(group.members, encoded, strict=True)
            )
            await group.average("int2")
            assert not any(
                torch.equal(member.feedback.save()[0], residual)
                for member, residual in zip(group.members, before, strict=True)
            )

    run_virtual(scenario())


def _break(attempt: Attempt, part: memoryview, bounds: tuple[int, int]) -> None:
    raise MessageError("a broken chunk")


def test_a_newcomer_has_none_and_a_round_without_loss_ends_them() -> None:
    state, how = outer_state([Shape(6, 8), Shape(3, 3)]), phase_of(False, 0)
    feedback = Feedback("auto")
    assert feedback.residual(0) is None
    feedback.load({0: torch.ones(8), 1: torch.ones(3)})
    contribution = Contribution.of(state, drifted(state, how, 1), how, feedback)
    vector = naive.delta(state, drifted(state, how, 1), how)
    average = Average("none", 8, codecs.find("none").encode(vector), bytes=0)
    feedback.commit(contribution, average)
    # It was sent whole; the other fragment has not been in the round.
    assert feedback.residual(0) is None
    assert feedback.residual(1) is not None
    feedback.clear()
    assert feedback.save() == {}


def test_a_member_that_only_receives_keeps_what_it_has() -> None:
    feedback = Feedback(1.0)
    feedback.load({0: torch.ones(8)})
    feedback.commit(None, Average("int8", 8, memoryview(b""), bytes=0))
    assert feedback.residual(0) is not None


def test_a_checkpoint_holds_it() -> None:
    """Saved, loaded elsewhere, the next contribution is the same to the bit."""
    state, how = outer_state([Shape(600, 700), Shape(300, 300)]), phase_of(False, 0, 1)
    feedback = Feedback(1.0)
    residual = torch.cat((normal(700, 3), normal(300, 4)))
    contribution = Contribution.of(state, drifted(state, how, 1), how, feedback)
    feedback.commit(contribution, Average("int4", 1000, memoryview(b""), bytes=0, residual=residual))
    assert {index: len(own) for index, own in feedback.save().items()} == {0: 700, 1: 300}
    restored = Feedback(1.0)
    restored.load({index: own.clone() for index, own in feedback.save().items()})
    local = drifted(state, how, 2)
    assert Contribution.of(state, local, how, restored).encode("int4") == Contribution.of(
        state, local, how, feedback
    ).encode("int4")
