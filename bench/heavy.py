"""Bytes of one step of a language model of distilgpt2's shape in three stages, with int8 both ways.

Measured with real stages, which takes a minute and 5 GiB; quickly, from the messages of that shape alone: random
tensors on the way that every message takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from bench.case import Case, Goal, Line
from bench.machines import HERE
from bench.ours import Form, open_ours
from bench.recipes import Recipe, least_bytes
from distqat.model.shapes import DataShape
from distqat.pipeline.hop import pack
from distqat.pipeline.hop_codecs import GRADIENT, HIDDEN, INPUTS
from distqat.pipeline.messages import to_frames
from distqat.pipeline.split import split
from distqat.pipeline.words import Gradient, Microbatch

STAGES = 3
DISTILGPT2 = Recipe(
    "gpt", DataShape("tokens", (1024,), 50257), 4, (("layers", 6), ("heads", 12), ("width", 768))
)  # fmt: skip
WIDTH = 768
MICROBATCHES = 4
FORM = Form("int8")
GOAL = Goal("value", 13.5)
MEGA = 1e6

Tensors = Mapping[str, torch.Tensor]


async def line(quick: bool) -> Line:
    """Of one step."""
    step = await (_messages() if quick else _real())
    name = f"distilgpt2's shape, 4 x 1024 tokens, S={STAGES}, {FORM}: " + ("messages alone" if quick else "one step")
    least = f"{2 * (STAGES - 1)} encoded activations, the inputs and the targets, computed"
    needed = least_bytes(DISTILGPT2, STAGES, FORM.codec) * DISTILGPT2.samples
    return Case("pipeline", name, "MB", "lower", least, GOAL).line([step / MEGA], [needed / MEGA])


async def _real() -> float:
    async with open_ours(DISTILGPT2, [FORM], [HERE] * STAGES) as ours:
        return (await ours.train(FORM, 1)).messages * DISTILGPT2.samples


async def _messages() -> float:
    """Bytes of the frames on all hops of one step."""
    total = 0
    for part in split(DISTILGPT2.samples, MICROBATCHES):
        for message, named in _of_microbatch(part.start, len(part)):
            headers, payload = await pack(named, dict.fromkeys((HIDDEN, GRADIENT), FORM.codec))
            message = type(message)(**{**vars(message), "tensors": headers})
            total += sum(len(frame) for frame in to_frames(message, payload))
    return float(total)


def _of_microbatch(index: int, samples: int) -> Iterator[tuple[Microbatch | Gradient, Tensors]]:
    """What goes over the three hops, down and up."""
    tokens = torch.zeros(samples, *DISTILGPT2.shape.inputs, dtype=torch.int64)
    hidden = torch.randn(samples, *DISTILGPT2.shape.inputs, WIDTH)
    down = Microbatch(1, index, MICROBATCHES, DISTILGPT2.samples, True, samples)
    yield down, {INPUTS: tokens, "labels": tokens}
    for _ in range(STAGES - 1):
        yield down, {HIDDEN: hidden, "labels": tokens}
        yield Gradient(1, index), {GRADIENT: hidden}
    yield Gradient(1, index), {}
