"""What the sums that a task collects amount to. Pure, and without torch: monitors and scorecards use it too."""

from __future__ import annotations

import math
from collections.abc import Mapping

METRICS: Mapping[str, str] = {"cv": "accuracy", "llm": "bits_per_byte", "speech": "character_error_rate"}
"""By task, the number that its evaluation is judged by."""


def evaluation(task: str, sums: Mapping[str, float]) -> dict[str, float]:
    """From sums over samples ("loss", "correct", "samples", "tokens", ...) to numbers that can be compared.

    "loss" is the mean over samples; "cv" adds the accuracy, "llm" the accuracy per token, the perplexity and the bits
    per byte (without "bytes", where a token is one), "speech" the errors per character, and per word if words
    were counted. Without samples there is nothing to say: empty.
    """
    samples = sums.get("samples", 0.0)
    if samples <= 0:
        return {}
    loss = sums["loss"] / samples
    if task == "llm":
        return {
            "loss": loss,
            "accuracy": sums["correct"] / sums["tokens"],
            # Beyond e^700 there is no float; such a model knows nothing either way.
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss / math.log(2) * (sums["tokens"] / sums.get("bytes", sums["tokens"])),
        }
    if task == "speech":
        rates = {"character_error_rate": _rate(sums, "character")}
        return {"loss": loss, **rates, **({"word_error_rate": _rate(sums, "word")} if "words" in sums else {})}
    return {"loss": loss, "accuracy": sums["correct"] / samples}


def _rate(sums: Mapping[str, float], what: str) -> float:
    """Errors by what there is; where there is nothing, by one."""
    return sums.get(f"{what}_errors", 0.0) / max(1.0, sums.get(f"{what}s", 0.0))
