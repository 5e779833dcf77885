from __future__ import annotations

import pytest

from distqat.errors import StaleError
from distqat.ids import MicrobatchId
from distqat.model.steps import Steps


def test_a_step_from_its_first_microbatch_to_its_end() -> None:
    steps = Steps("gpt/0")
    assert repr(steps) == "version 0"
    steps.admit(MicrobatchId(1, 0))
    steps.begun = 1
    steps.admit(MicrobatchId(1, 1))
    steps.count(MicrobatchId(1, 1))
    assert repr(steps) == "version 0, pending step 1 (1 microbatches)"
    steps.expect_complete(1, 0, "cannot commit")
    steps.version = 1
    steps.end()
    assert repr(steps) == "version 1"
    steps.admit(MicrobatchId(2, 0))


@pytest.mark.parametrize(
    ("microbatch", "message"),
    [
        (MicrobatchId(3, 0), "stage gpt/0 has committed step 3; step 3 is over"),
        (MicrobatchId(5, 2), "is at step 4, which is neither committed nor dropped; microbatch 2 of step 5"),
        (MicrobatchId(4, 1), "has counted microbatch 1 of step 4 already"),
    ],
)
def test_microbatches_out_of_turn(microbatch: MicrobatchId, message: str) -> None:
    steps = Steps("gpt/0")
    steps.version, steps.begun = 3, 4
    steps.count(MicrobatchId(4, 1))
    with pytest.raises(StaleError, match=message):
        steps.admit(microbatch)


def test_a_step_that_is_not_complete() -> None:
    steps = Steps("gpt/0")
    with pytest.raises(StaleError, match="at version 0 cannot commit step 1: nothing is pending"):
        steps.expect_complete(1, 0, "cannot commit")
    steps.count(MicrobatchId(1, 0))
    with pytest.raises(StaleError, match="step 1 is pending"):
        steps.expect_complete(2, 0, "cannot commit")
    with pytest.raises(StaleError, match="3 microbatches have no gradient yet"):
        steps.expect_complete(1, 3, "cannot commit")
