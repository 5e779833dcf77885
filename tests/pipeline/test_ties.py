"""A head that is tied to the embedding at the other end of the pipeline: lent with a step, its gradient given back."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch

from distqat.ids import Endpoint, MicrobatchId
from distqat.model.agreement import LossScale, Verdict
from distqat.model.shapes import DataShape
from distqat.pipeline.computing import Computing
from distqat.pipeline.hop_codecs import TIED
from distqat.pipeline.messages import from_header
from distqat.pipeline.route import HopError
from distqat.pipeline.words import Gradient, Microbatch
from distqat.rpc.transport import Method, Stream, Transport
from distqat.rpc.wrapped import WrappedStream, WrappedTransport
from distqat.sections import OptimizerSection, Precision
from distqat.wire import frames
from tests.pipeline.courses import Course
from tests.pipeline.swarm import Recipe, Swarm, Tensors, open_swarm, run_plain, train, train_whole
from tests.pipeline.test_exactly_once import SGD, Track, each, is_of_second_step, on_track, seat_newcomers

OPTIONS: dict[str, int | float | str | bool | list[int]] = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 8}
CLIPPED = OptimizerSection(name="adamw", clip_norm=0.5)
GPT2 = Recipe("distilgpt2", DataShape("tokens", (8,), 17), "llm", OPTIONS, samples=4, optimizer=CLIPPED)

STEPS = range(1, 7)


@pytest.mark.parametrize(
    ("stages", "precision"), [(1, "fp32"), (2, "fp32"), (3, "fp32"), (3, "bf16"), (3, "fp16")], ids=str
)
def test_a_pipeline_equals_one_process_bit_for_bit(stages: int, precision: Precision) -> None:
    recipe = replace(GPT2, precision=precision)

    async def scenario() -> tuple[list[dict[str, float]], torch.Tensor]:
        async with open_swarm(recipe, stages) as swarm:
            async with swarm.open() as link:
                sums = await train(link, recipe, STEPS, 4)
            return sums, swarm.flat()

    sums, flat = run_plain(scenario())
    whole = recipe.whole()
    before = whole.flatten()
    assert train_whole(whole, recipe, STEPS, 4) == sums
    assert torch.equal(whole.flatten(), flat)
    assert not torch.equal(before, flat)


class Recorder:
    """Which messages of a swarm carried the tied tensor or its gradient, by the hop."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def wrap(self, transport: Transport, name: str) -> Transport:
        return _Recording(transport, name, self)

    def note(self, hop: str, data: bytes) -> None:
        message, chunk = from_header(frames.split(data)[0])
        if isinstance(message, Microbatch | Gradient) and not (chunk is not None and chunk.offset):
            for header in message.tensors:
                if header.name == TIED:
                    kind = "eval" if isinstance(message, Microbatch) and not message.train else "train"
                    self.seen.append((hop, f"{type(message).__name__} {kind} {message.step}.{message.index}"))
                    assert (header.codec, header.dtype) == ("none", "float32")


class _Recording(WrappedTransport):
    def __init__(self, inner: Transport, name: str, recorder: Recorder) -> None:
        super().__init__(inner)
        self._name = name
        self._recorder = recorder

    def wrap_stream(self, stream: Stream, to: Endpoint, method: Method) -> Stream:
        return _RecordingStream(stream, f"{self._name}>{to.host}", self._recorder)


class _RecordingStream(WrappedStream):
    def __init__(self, inner: Stream, hop: str, recorder: Recorder) -> None:
        super().__init__(inner)
        self._hop = hop
        self._recorder = recorder

    async def send(self, data: bytes, more: bool = False) -> None:
        self._recorder.note(self._hop, data)
        await super().send(data, more)

    async def receive(self) -> bytes | None:
        data = await super().receive()
        if data is not None:
            self._recorder.note(self._hop, data)
        return data


def test_the_tensor_and_its_gradient_travel_once_in_a_step_and_never_in_vain() -> None:
    recorder = Recorder()

    async def scenario() -> None:
        wire = {"activations": "int8", "gradients": "int8"}
        limits = Course("int8", GPT2, settings={"wire": wire}).limits()
        async with open_swarm(GPT2, 3, limits, wrap=recorder.wrap) as swarm, swarm.open() as link:
            await train(link, GPT2, (1, 2), 2)
            await link.evaluate(GPT2.batch(9), 2)
            await link.evaluate(GPT2.batch(9), 2)

    run_plain(scenario())
    for hop in ("expert0>expert1", "expert1>expert2"):
        assert [what for where, what in recorder.seen if where == hop] == [
            "Microbatch train 1.0",
            "Gradient train 1.1",
            "Microbatch train 2.0",
            "Gradient train 2.1",
            "Microbatch eval 3.0",
        ]
    assert {hop for hop, _ in recorder.seen} == {"expert0>expert1", "expert1>expert2"}


def test_a_tensor_that_has_not_changed_does_not_travel_again() -> None:
    """Behind a step that overflows, as all do until the loss scale fits."""
    recorder, recipe = Recorder(), replace(GPT2, precision="fp16")

    async def scenario() -> list[float]:
        factors: list[float] = []
        verdict = Verdict(1.0, LossScale(2.0**20))
        async with open_swarm(recipe, 2, wrap=recorder.wrap) as swarm, swarm.open(verdict=verdict) as link:
            while not factors or factors[-1] == 0.0:
                result = await link.train(link.step + 1, recipe.batch(1), 1)
                factors.append(result.verdict.factor)
            await link.train(link.step + 1, recipe.batch(1), 1)
        return factors

    factors = run_plain(scenario())
    assert len(factors) > 1
    assert [what for _, what in recorder.seen if what.startswith("Microbatch")] == [
        "Microbatch train 1.0",
        f"Microbatch train {len(factors) + 1}.0",
    ]


def test_a_round_that_moves_the_embedding_moves_the_head() -> None:
    """Which has no round of its own: what is committed of the tensor is what stage 0 has."""
    whole = GPT2.whole()
    train_whole(whole, GPT2, (1,), 2)

    async def scenario() -> tuple[torch.Tensor, dict[str, float], list[dict[str, float]]]:
        async with open_swarm(GPT2, 3) as swarm, swarm.open() as link:
            swarm.experts[0].round = lambda: moved(swarm)
            await train(link, GPT2, (1,), 2)
            found = await link.evaluate(GPT2.batch(9), 1)
            begun = swarm.flat()
            swarm.experts[0].round = None
            return begun, found, await train(link, GPT2, (2, 3), 2)

    begun, evaluated, sums = run_plain(scenario())
    assert not torch.equal(begun, whole.flatten())
    whole.scatter([0], begun)
    assert train_whole(whole, GPT2, (2, 3), 2) == sums
    again = GPT2.whole()
    again.scatter([0], begun)
    batch = GPT2.batch(9)
    targets = {"labels": batch["labels"]}
    assert again.loss(MicrobatchId(1, 0), batch["inputs"], targets, GPT2.samples, train=False).sums == evaluated


@asynccontextmanager
async def moved(swarm: Swarm) -> AsyncIterator[None]:
    """What an outer round does to the first stage."""
    stage = swarm.experts[0].stage
    stage.scatter([0], stage.gather([0]) * 1.25)
    yield


async def breaks(swarm: Swarm, batch: Tensors) -> HopError:
    with pytest.raises(HopError) as caught:
        async with swarm.open() as link:
            await link.train(1, batch, 2)
    return caught.value


def test_a_trainer_lends_nothing() -> None:
    async def scenario() -> HopError:
        async with open_swarm(GPT2, 2) as swarm:
            return await breaks(swarm, {**GPT2.batch(1), TIED: torch.zeros(4, 8)})

    error = run_plain(scenario())
    assert (error.peer, error.kind) == ("expert0", "MessageError")
    assert "the tied tensor came with microbatch" in error.reason


def test_a_stage_that_is_lent_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_: Computing) -> dict[str, torch.Tensor]:
        return {}

    async def scenario() -> HopError:
        async with open_swarm(GPT2, 2) as swarm:
            # From an older route: what it was lent then counts no more.
            async with swarm.open() as link:
                await train(link, GPT2, (1,), 2)
            monkeypatch.setattr(Computing, "lend", nothing)
            with pytest.raises(HopError) as caught:
                async with swarm.open(1) as link:
                    await link.train(2, GPT2.batch(2), 2)
            return caught.value

    error = run_plain(scenario())
    assert (error.peer, error.kind) == ("expert1", "MessageError")
    assert "before the tied tensor" in error.reason


def test_a_gradient_that_is_kept_back_breaks_the_route(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> HopError:
        async with open_swarm(GPT2, 2) as swarm:
            monkeypatch.setattr(swarm.experts[1].stage.tie, "give_back", lambda: None)
            return await breaks(swarm, GPT2.batch(1))

    error = run_plain(scenario())
    assert (error.peer, error.kind) == ("expert1", "MessageError")
    assert "['gradient'] with the gradient of" in error.reason


TIES = Course("tied, clipped", GPT2, microbatches=2, steps=2, settings={"optimizer": {"clip_norm": 0.5}})


@pytest.mark.parametrize("place", ["trainer>expert0", "expert0>expert1", "expert1>expert2", "stage"])
def test_a_cut_anywhere_in_a_step_leaves_the_tie_as_it_was(place: str) -> None:
    async def work(track: Track) -> None:
        points = [p for p in track.whole.scissors.seen if p.where.startswith(place) and is_of_second_step(p)]
        await each(random.Random(place).sample(points, 10), track)

    on_track(TIES, work)


@pytest.mark.soak
def test_a_cut_at_any_point_at_all() -> None:
    async def work(track: Track) -> None:
        await each(track.whole.scissors.seen, track)

    on_track(TIES, work, 3000.0)


# Momenta stay with whoever had them, so the optimizer has none here.
NEWCOMERS = Course("tied, fp16 sgd", GPT2, settings={"optimizer": SGD, "train": {"precision": "fp16"}}, microbatches=2)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_newcomer_at_either_end_takes_up_the_tie(index: int) -> None:
    """The stage dies between gradients and commit, or anywhere else; another takes its seat."""

    async def work(track: Track) -> None:
        seen, numbers = track.whole.scissors.seen, random.Random(f"{index} ties")
        ends = [point for point in seen if point.what.lower().startswith(("commit", "gradient 2.1"))]
        await seat_newcomers(track, index, [*numbers.sample(ends, 6), *numbers.sample(seen, 2)])

    on_track(NEWCOMERS, work)
