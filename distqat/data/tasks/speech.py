"""Task speech. Shapes: B samples, T frames, C characters with the blank, L characters of a transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distqat.data import metrics
from distqat.data.tasks.labels import padded_labels_of

BLANK, PADDING = 0, -1

CERTAIN = 5e3
"""By which the blank lies above all other characters in a frame of padding, which have one and the same score. No model
learns such a frame: there is nothing left to learn at a tenth of that."""


class SpeechTask:
    """Write down what is said: CTC (Graves et al., 2006) of outputs [B, T, C] against labels int64 [B, L], 0 the blank
    and -1 behind the last. Frames of padding must say blank, with certainty; then the loss over all frames is that over
    the sound."""

    name = "speech"
    metric_name = metrics.METRICS["speech"]

    def __init__(self, characters: str) -> None:
        self._space = characters.find(" ") + 1  # 0: there is none, so there are no words.

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Sum over samples of the mean over characters, nothing for a transcript that is too long for its sound; and
        "loss", "samples"; where nothing is trained also "characters", "character_errors", and "words", "word_errors" if
        there is a space. Raises TensorError."""
        labels = padded_labels_of(targets, output, PADDING)
        lengths = (labels != PADDING).sum(1)
        fits = frames_to_say(labels) <= frames_of_sound(output.detach())
        chances = F.log_softmax(output, -1)
        costs = F.ctc_loss(
            chances.transpose(0, 1),
            labels.clamp(min=1),
            torch.full_like(lengths, output.shape[1]),
            lengths * fits,  # Without characters the cost is finite, and so are gradients.
            BLANK,
            reduction="none",
        ) / lengths.clamp(min=1)
        is_spoilt = chances.detach().isnan().flatten(1).any(1)
        loss = costs.masked_fill(~fits, 0.0).masked_fill(is_spoilt, float("nan")).sum()
        sums = {"loss": float(loss.detach()), "samples": float(len(labels))}
        if not torch.is_grad_enabled():
            sums |= self._errors(output, labels)
        return loss, sums

    def evaluation(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss, character error rate, and word error rate if words were counted."""
        return metrics.evaluation(self.name, sums)

    def _errors(self, output: Tensor, labels: Tensor) -> dict[str, float]:
        """Edits from what the model says to the transcripts."""
        sums = dict.fromkeys(("characters", "character_errors"), 0.0)
        if self._space:
            sums |= dict.fromkeys(("words", "word_errors"), 0.0)
        for frames, transcript in zip(output.argmax(-1).tolist(), labels.tolist(), strict=True):
            said, wanted = greedy(frames), [label for label in transcript if label != PADDING]
            sums["characters"] += len(wanted)
            sums["character_errors"] += edits(said, wanted)
            if self._space:
                words = words_of(wanted, self._space)
                sums["words"] += len(words)
                sums["word_errors"] += edits(words_of(said, self._space), words)
        return sums


def frames_of_sound(output: Tensor) -> Tensor:
    """Int64 [B]: frames up to the last one that is not of padding."""
    others = output[..., 1:]
    highest = others.amax(-1)
    is_padding = (highest == others.amin(-1)) & (output[..., BLANK] - highest >= CERTAIN)
    ends = torch.arange(1, output.shape[1] + 1, device=output.device)
    return (ends * ~is_padding).amax(1)


def frames_to_say(labels: Tensor) -> Tensor:
    """Int64 [B]: the least frames of a transcript, one a character and a blank between two of the same."""
    is_said = labels != PADDING
    repeats = (labels[:, 1:] == labels[:, :-1]) & is_said[:, 1:]
    return is_said.sum(1) + repeats.sum(1)


def greedy(frames: Sequence[int]) -> list[int]:
    """What the likeliest character of each frame says: once for a run of the same, and without blanks."""
    return [now for place, now in enumerate(frames) if now != BLANK and (not place or now != frames[place - 1])]


def words_of(characters: Sequence[int], space: int) -> list[tuple[int, ...]]:
    """The characters between spaces."""
    words: list[list[int]] = [[]]
    for character in characters:
        if character == space:
            words.append([])
        else:
            words[-1].append(character)
    return [tuple(word) for word in words if word]


def edits(said: Sequence[object], wanted: Sequence[object]) -> int:
    """Least number of characters (or words) to put in, take out or change (Levenshtein, 1966)."""
    costs = list(range(len(wanted) + 1))
    for row, own in enumerate(said, 1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(wanted, 1):
            changed = diagonal + (own != other)
            diagonal = costs[column]
            costs[column] = min(changed, costs[column] + 1, costs[column - 1] + 1)
    return costs[-1]
