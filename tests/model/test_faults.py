"""What the code of a model raises: told in one sentence, and nothing is held any more."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch

from distqat.errors import ComputeError, MemoryShortError, TensorError, TornError
from distqat.ids import MicrobatchId
from distqat.model.faults import contained
from distqat.model.stage import Stage
from tests.pipeline.swarm import TINY


def begun() -> Stage:
    """A stage that holds gradients of a step."""
    stage, batch = TINY.whole(), TINY.batch(1)
    stage.loss(MicrobatchId(1, 0), batch["inputs"], {"labels": batch["labels"]}, 8)
    assert stage.pending is not None
    return stage


def raises(stage: Stage, error: Exception, kind: str = "forward") -> ComputeError:
    def work() -> NoReturn:
        raise error

    with pytest.raises(ComputeError) as caught:
        contained(kind, stage, work)()
    return caught.value


def test_an_error_of_the_model_is_told_with_its_kind_and_first_line() -> None:
    stage = begun()
    error = raises(stage, ValueError("Expected more than 1 value per channel\nException raised from ..."))
    assert error.reason == f"the forward of {stage.name} failed: ValueError: Expected more than 1 value per channel"
    assert stage.pending is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 3.12 MiB free"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_told_without_the_numbers_of_the_moment(error: Exception) -> None:
    stage = begun()
    told = raises(stage, error)
    assert isinstance(told, MemoryShortError)
    expected = f"not enough memory on cpu for the forward of {stage.name}; smaller microbatches need less"
    assert told.reason == expected
    assert stage.pending is None


def test_a_commit_that_fails_leaves_nothing_that_may_be_used() -> None:
    assert isinstance(raises(begun(), RuntimeError("kernel"), kind="commit"), TornError)


def test_errors_of_ours_and_results_pass() -> None:
    stage = begun()

    def refuse() -> NoReturn:
        raise TensorError("it holds NaN")

    with pytest.raises(TensorError):
        contained("forward", stage, refuse)()
    assert stage.pending is not None
    assert contained("forward", stage, lambda: 7)() == 7
