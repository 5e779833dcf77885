"""CTC against the sum over all paths; error rates against the longest way to count them."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config

from distqat.data.tasks import find_task
from distqat.data.tasks.speech import SpeechTask, edits, greedy, words_of
from distqat.data_sections import DatasetSection
from distqat.errors import TensorError
from distqat.model.task import score
from distqat.model.zoo.families import riders, wav2vec2

TASK = SpeechTask(" ab")


def outputs(samples: int, frames: int, classes: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(samples, frames, classes, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def all_paths(scores: Tensor, transcript: list[int]) -> Tensor:
    """The cost of a transcript: over each path of the frames that says it."""
    chances = scores.softmax(-1)
    total = torch.zeros(())
    for path in itertools.product(range(scores.shape[1]), repeat=scores.shape[0]):
        if greedy(path) == transcript:
            total = total + torch.stack([chances[frame, place] for frame, place in enumerate(path)]).prod()
    return -total.log()


def test_the_loss_is_the_sum_over_all_paths() -> None:
    labels = torch.tensor([[1, 2, -1], [3, 3, -1], [2, -1, -1], [-1, -1, -1]])
    scores = outputs(4, 4)
    loss, sums = TASK.loss(scores, {"labels": labels})
    (gradient,) = torch.autograd.grad(loss, scores)
    wanted = [[1, 2], [3, 3], [2], []]
    own = scores.detach().clone().requires_grad_()
    expected = torch.stack([all_paths(own[place], said) / max(1, len(said)) for place, said in enumerate(wanted)]).sum()
    (by_paths,) = torch.autograd.grad(expected, own)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, by_paths, rtol=1e-4, atol=1e-6)
    assert sums == {"loss": pytest.approx(float(expected.detach())), "samples": 4.0}


def test_the_loss_is_torchs_with_the_lengths_of_the_sound() -> None:
    """Frames of padding say blank."""
    scores, lengths = outputs(3, 12, seed=2), torch.tensor([12, 7, 9])
    labels = torch.tensor([[1, 2, 3, 1], [2, 2, -1, -1], [3, 1, 2, -1]])
    silent = torch.tensor([0.0, -1e4, -1e4, -1e4])
    padded = torch.where((torch.arange(12) >= lengths[:, None])[..., None], silent, scores)
    loss, _ = TASK.loss(padded, {"labels": labels})
    counts = (labels >= 0).sum(1)
    logs = F.log_softmax(scores, -1).transpose(0, 1)
    expected = (F.ctc_loss(logs, labels.clamp(min=1), lengths, counts, reduction="none") / counts).sum()
    torch.testing.assert_close(loss, expected)
    (gradient,), (other,) = (torch.autograd.grad(value, scores) for value in (loss, expected))
    torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_a_transcript_that_does_not_fit_into_the_sound_teaches_nothing() -> None:
    scores = outputs(2, 6)
    labels = torch.tensor([[1, 2, 3, 1, 2, 3, 1], [1, -1, -1, -1, -1, -1, -1]])
    loss, _ = TASK.loss(scores, {"labels": labels})
    alone, _ = TASK.loss(scores[1:], {"labels": labels[1:]})
    torch.testing.assert_close(loss, alone)
    silent = torch.tensor([0.0, -1e4, -1e4, -1e4])
    padded = torch.cat([scores[:, :2], silent.expand(2, 4, 4)], 1)
    loss, _ = TASK.loss(padded, {"labels": labels[:, :4]})
    alone, _ = TASK.loss(padded[1:], {"labels": labels[1:, :4]})
    torch.testing.assert_close(loss, alone)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not bool(gradient[0].any())
    assert bool(gradient.isfinite().all())


def sound_of(frames: int, of: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Outputs [1, of, 29] of so many frames of sound, and padding as the head of wav2vec 2.0 writes it."""
    config = Wav2Vec2Config(hidden_size=32, vocab_size=29, feat_extract_norm="layer", final_dropout=0.0)
    torch.manual_seed(3)
    hidden = riders.put_on(torch.randn(1, of, 32, dtype=dtype), torch.tensor([frames]))
    scores: Tensor = wav2vec2.Head(config).to(dtype)(hidden)
    return scores.float()


def transcript(characters: int, pairs: int = 0) -> Tensor:
    """Labels [1, characters]; the first `pairs` characters are there twice in a row."""
    said = [1 + place // 2 % 2 for place in range(2 * pairs)]
    return torch.tensor([said + [3 + place % 2 for place in range(characters - len(said))]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("characters", "pairs"), [(38, 0), (30, 8), (1, 0)])
def test_a_transcript_counts_while_it_fits_into_the_frames_of_sound(
    characters: int, pairs: int, dtype: torch.dtype
) -> None:
    """One frame for each character, and one between two of the same; to the frame, however little is missing."""
    labels, needed = {"labels": transcript(characters, pairs)}, characters + pairs
    scores = sound_of(needed, 100, dtype).detach().requires_grad_()
    loss, _ = TASK.loss(scores, labels)
    assert 0.0 < float(loss.detach()) < 100.0
    scores = sound_of(max(1, needed - 1), 100, dtype).detach().requires_grad_()
    loss, sums = TASK.loss(scores, labels if needed > 1 else {"labels": transcript(2)})
    assert (float(loss.detach()), sums["loss"], sums["samples"]) == (0.0, 0.0, 1.0)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not bool(gradient.any())


def test_a_model_that_is_sure_of_blank_is_not_padding() -> None:
    scores = outputs(1, 8).detach()
    scores[..., 0] += 6e3
    loss, _ = TASK.loss(scores, {"labels": torch.tensor([[1, 2, 3]])})
    assert float(loss) > 5e3


@pytest.mark.parametrize("labels", [[1, 2], [1, 2, 3, 1, 2, 3, 1], [-1]])
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_not_hidden(spoilt: float, labels: list[int]) -> None:
    """Also where the transcript does not fit: the task never says 0 of a model that is broken."""
    for scores in (torch.full((1, 6, 4), spoilt), outputs(1, 6).detach()):
        scores[0, 2, 1] = spoilt
        with pytest.raises(TensorError, match="the loss in stage 1 is nan"):
            score(TASK, "1", scores, {"labels": torch.tensor([labels])})


def test_an_infinite_loss_is_not_hidden() -> None:
    scores = outputs(1, 6).detach()
    scores[..., 1] = -torch.inf
    with pytest.raises(TensorError, match="the loss in stage 1 is inf"):
        score(TASK, "1", scores, {"labels": torch.tensor([[1]])})


def test_microbatches_add_up_to_the_batch() -> None:
    scores, labels = outputs(8, 9), torch.tensor([[1, 2, -1], [3, -1, -1]] * 4)
    with torch.no_grad():
        whole, sums = TASK.loss(scores, {"labels": labels})
        parts = [TASK.loss(scores[i : i + 2], {"labels": labels[i : i + 2]}) for i in range(0, 8, 2)]
    assert sum(float(part[0]) for part in parts) == pytest.approx(float(whole), rel=1e-5)
    assert {key: sum(part[1][key] for part in parts) for key in sums} == pytest.approx(sums)


def test_errors_are_counted_where_nothing_is_trained() -> None:
    """' ' is 1, a 2, b 3. Said: 'ab b'; wanted: 'ab a' and 'b'."""
    said = F.one_hot(torch.tensor([[2, 2, 0, 3, 1, 3], [0, 0, 0, 0, 0, 0]]), 4).float() * 9
    labels = torch.tensor([[2, 3, 1, 2], [3, -1, -1, -1]])
    assert "characters" not in TASK.loss(said.requires_grad_(), {"labels": labels})[1]
    with torch.no_grad():
        _, sums = TASK.loss(said, {"labels": labels})
    counts = {name: sums[name] for name in ("characters", "character_errors", "words", "word_errors")}
    assert counts == {"characters": 5.0, "character_errors": 2.0, "words": 3.0, "word_errors": 2.0}
    assert TASK.evaluation(sums) == {
        "loss": pytest.approx(sums["loss"] / 2),
        "character_error_rate": pytest.approx(0.4),
        "word_error_rate": pytest.approx(2 / 3),
    }
    assert TASK.metric_name in TASK.evaluation(sums)


def test_without_a_space_there_are_no_words() -> None:
    task = find_task("speech", DatasetSection(vocabulary="abc"))
    with torch.no_grad():
        _, sums = task.loss(outputs(1, 5), {"labels": torch.tensor([[1, 2]])})
    assert set(task.evaluation(sums)) == {"loss", "character_error_rate"}


def test_greedy_decoding_by_hand() -> None:
    assert greedy([0, 1, 1, 0, 1, 2, 2, 0]) == [1, 1, 2]
    assert greedy([]) == greedy([0, 0]) == []
    assert words_of([2, 3, 1, 1, 3], 1) == [(2, 3), (3,)]
    assert words_of([1], 1) == []


@given(st.lists(st.integers(0, 3), max_size=7), st.lists(st.integers(0, 3), max_size=7))
def test_edits_are_the_least_number(said: list[int], wanted: list[int]) -> None:
    @lru_cache(None)
    def naive(own: int, other: int) -> int:
        if not own or not other:
            return own + other
        changed = naive(own - 1, other - 1) + (said[own - 1] != wanted[other - 1])
        return min(changed, naive(own - 1, other) + 1, naive(own, other - 1) + 1)

    assert edits(said, wanted) == naive(len(said), len(wanted))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), "labels must lie in 1 to 3, got 0 to 0"),
        (torch.tensor([[1, 4], [1, -1]]), "got 1 to 4"),
        (torch.tensor([[-1, 1], [1, -1]]), "labels go on behind -1"),
        (torch.ones(3, 2, dtype=torch.int64), r"int64 of shape \[2, 2\], got torch.int64 of \[3, 2\]"),
        (torch.ones(2, dtype=torch.int64), r"int64 of shape \[2, 1\]"),
        (torch.ones(2, 2), "got torch.float32"),
    ],
)
def test_bad_labels_are_named(labels: Tensor, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        TASK.loss(outputs(2, 5), {"labels": labels})


def test_a_loss_without_samples_says_nothing() -> None:
    assert TASK.evaluation({}) == {}
    assert math.isfinite(TASK.evaluation({"loss": 1.0, "samples": 1.0})["character_error_rate"])
