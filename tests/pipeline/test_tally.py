"""A batch cut up, and its outcomes added up again."""

from __future__ import annotations

import pytest
import torch

from distqat.errors import DataError, MessageError
from distqat.model.agreement import LossScale, Verdict
from distqat.pipeline.tally import MAX_RESULTS, Results, StepResult, Tally, pieces_of
from distqat.pipeline.words import Committed, Gradient, Outcome

BATCH = {"inputs": torch.arange(7.0), "labels": torch.arange(7)}


def test_a_batch_is_cut_into_pieces_that_know_the_whole() -> None:
    pieces = pieces_of(3, BATCH, 3, train=True, progress=0.25, warmup=0.5)
    assert torch.equal(torch.cat([named["inputs"] for _, named in pieces]), BATCH["inputs"])
    assert [(message.index, message.samples) for message, _ in pieces] == [(0, 3), (1, 2), (2, 2)]
    assert {(m.step, m.count, m.batch_samples, m.train) for m, _ in pieces} == {(3, 3, 7, True)}
    assert {(m.progress, m.warmup) for m, _ in pieces} == {(0.25, 0.5)}


@pytest.mark.parametrize("batch", [{"labels": torch.arange(7)}, {**BATCH, "labels": torch.arange(6)}])
def test_what_is_no_batch_is_refused(batch: dict[str, torch.Tensor]) -> None:
    with pytest.raises(DataError, match="a batch needs 'inputs' and targets of as many samples"):
        pieces_of(1, batch, 2, train=True)


def test_outcomes_are_added_up() -> None:
    results = Results()
    results.begin(1, 2)
    tally = results.under_way[1]
    tally.began = 10.0
    tally.add(Gradient(1, 0, sums={"loss": 1.0, "correct": 2.0}))
    with pytest.raises(MessageError, match="committed after 1 of 2 outcomes"):
        results.commit(Committed(1), 12.0)
    tally.add(Gradient(1, 1, sums={"loss": 0.5, "correct": 1.0}))
    with pytest.raises(MessageError, match="does not wait for one"):
        tally.add(Gradient(1, 1, sums={"loss": 0.5}))
    verdict = Verdict(0.5, LossScale(2.0, 3))
    results.commit(Committed(1, verdict, 1.5), 12.0)
    assert results.take(1) == StepResult(1, {"loss": 1.5, "correct": 3.0}, 2.0, 1.5, verdict)
    assert results.take(1) is None


@pytest.mark.parametrize("answer", [Gradient(1, 0), Outcome(1, 0, {"correct": 1.0})])
def test_an_answer_without_a_loss_is_a_fault_of_who_gave_it(answer: Gradient | Outcome) -> None:
    with pytest.raises(MessageError, match="does not tell the loss"):
        Tally(1).add(answer)


def test_old_results_are_forgotten() -> None:
    results = Results()
    for step in range(1, MAX_RESULTS + 2):
        results.begin(step, 1)
        results.under_way[step].add(Gradient(step, 0, sums={"loss": 1.0}))
        results.commit(Committed(step), 0.0)
    assert results.take(1) is None
    assert results.take(2) is not None
