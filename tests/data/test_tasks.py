from __future__ import annotations

import math

import pytest
import torch

from distqat.data import metrics
from distqat.data.tasks import find_task
from distqat.errors import DataError, TensorError


def test_images_by_hand() -> None:
    output = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]], requires_grad=True)
    loss, sums = find_task("cv").loss(output, {"labels": torch.tensor([0, 1])})
    assert loss.item() == pytest.approx(math.log(2) + math.log(4 / 3))
    assert sums == {"loss": pytest.approx(loss.item()), "correct": 2.0, "samples": 2.0}
    torch.autograd.backward(loss)
    assert output.grad is not None
    assert output.grad.tolist() == [pytest.approx([-0.5, 0.5]), pytest.approx([0.25, -0.25])]


def test_text_by_hand() -> None:
    output = torch.zeros(2, 3, 4)
    output[0, 0, 1] = 50.0
    labels = torch.tensor([[1, 0, 0], [3, 3, 3]])
    loss, sums = find_task("llm").loss(output, {"labels": labels})
    assert loss.item() == pytest.approx(math.log(4) * (2 / 3 + 1))
    assert sums == {"loss": pytest.approx(loss.item()), "correct": 3.0, "tokens": 6.0, "samples": 2.0}


@pytest.mark.parametrize(("name", "shape"), [("cv", (8, 10)), ("llm", (8, 5, 10))])
def test_microbatches_add_up_to_the_batch(name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(shape, generator=generator)
    labels = torch.randint(10, shape[:-1], generator=generator)
    whole, sums = find_task(name).loss(output, {"labels": labels})
    parts = [find_task(name).loss(output[i : i + 2], {"labels": labels[i : i + 2]}) for i in range(0, 8, 2)]
    assert sum(part[0].item() for part in parts) == pytest.approx(whole.item(), rel=1e-6)
    assert {key: sum(part[1][key] for part in parts) for key in sums} == pytest.approx(sums)


def test_evaluation() -> None:
    images = find_task("cv")
    assert images.evaluation({"loss": 3.0, "correct": 5.0, "samples": 6.0}) == {"loss": 0.5, "accuracy": 5 / 6}
    text = find_task("llm")
    sums = {"loss": 2 * math.log(8), "correct": 3.0, "tokens": 12.0, "samples": 2.0}
    assert text.evaluation(sums) == pytest.approx(
        {"loss": math.log(8), "accuracy": 0.25, "perplexity": 8.0, "bits_per_byte": 3.0}
    )
    assert images.metric_name in images.evaluation({"loss": 1.0, "correct": 0.0, "samples": 1.0})
    assert text.metric_name in text.evaluation(sums)
    assert metrics.evaluation("cv", {}) == {}
    assert math.isfinite(metrics.evaluation("llm", {**sums, "loss": 1e6})["perplexity"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"int64 of shape \[2\], got torch.int64 of \[3\]"),
        (torch.zeros(2), r"int64 of shape \[2\], got torch.float32"),
        (torch.tensor([0, 4]), "labels must lie in 0 to 3, got 0 to 4"),
        (torch.tensor([-1, 0]), "got -1 to 0"),
    ],
)
def test_bad_labels_are_named(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        find_task("cv").loss(torch.zeros(2, 4), {"labels": labels})


def test_other_bad_input_is_named() -> None:
    with pytest.raises(TensorError, match="target 'labels' is missing; there are: mask"):
        find_task("cv").loss(torch.zeros(2, 4), {"mask": torch.zeros(2)})
    with pytest.raises(TensorError, match="3 dimensions"):
        find_task("llm").loss(torch.zeros(2, 4), {"labels": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(TensorError, match="int64 of shape"):
        find_task("cv").loss(torch.zeros(0, 4), {"labels": torch.zeros(0, dtype=torch.int64)})
    with pytest.raises(DataError, match="unknown task 'vc'; there are: cv, llm, speech"):
        find_task("vc")


def test_bits_are_per_byte_of_text_whatever_a_token_is() -> None:
    """Scores that say nothing are worth 3 bits for each of 8 tokens; with 4 bytes a token that is 3/4 bit a byte."""
    labels, task = torch.zeros(2, 5, dtype=torch.int64), find_task("llm")
    _, sums = task.loss(torch.zeros(2, 5, 8), {"labels": labels})
    assert task.evaluation(sums)["bits_per_byte"] == pytest.approx(3)
    _, sums = task.loss(torch.zeros(2, 5, 8), {"labels": labels, "bytes": torch.tensor([20.0, 20.0])})
    assert sums["bytes"] == 40
    assert task.evaluation(sums)["bits_per_byte"] == pytest.approx(0.75)


@pytest.mark.parametrize("sizes", [[0.0, 0.0], [20.0], [math.nan, 20.0], [math.inf, 20.0], [-30.0, 20.0]])
def test_bytes_that_cannot_be_are_refused(sizes: list[float]) -> None:
    targets = {"labels": torch.zeros(2, 5, dtype=torch.int64), "bytes": torch.tensor(sizes)}
    with pytest.raises(TensorError, match="bytes must be 2 numbers above 0"):
        find_task("llm").loss(torch.zeros(2, 5, 8), targets)
