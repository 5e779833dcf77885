"""Which codec a hop takes: chosen by the sender, known to both sides, and held to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distqat.errors import MessageError
from distqat.ids import MicrobatchId
from distqat.pipeline.hop_codecs import HopCodecs, check_codecs, codecs_of, names_of
from distqat.pipeline.route import HopError, Limits
from distqat.pipeline.words import Microbatch, Open
from distqat.quant_sections import QuantSection
from distqat.rpc.transport import Transport
from distqat.sections import Precision
from distqat.wire import tensors
from distqat.wire.tensors import TensorHeader
from distqat.wire_sections import LearnedChange, LearnedCodes, WireOverride, WireSection
from tests.pipeline.swarm import GPT, LIMITS, MLP, RESNET, TINY, Recipe, open_swarm, run_plain, train, train_whole
from tests.pipeline.test_service import fault_of, opening, raw_hop
from tests.pipeline.test_ties import GPT2

NAMES = ("gpt/0", "gpt/1", "gpt/2")
MIXED = WireSection(
    inputs="bf16",
    activations="int8",
    gradients="bf16",
    overrides=[
        WireOverride(stages="gpt/1", activations="fp16"),
        WireOverride(stages="*/2", gradients="int4"),
        WireOverride(stages="resnet/*", activations="none", gradients="none"),
    ],
)


def test_the_sender_chooses() -> None:
    assert codecs_of(MIXED, NAMES, 0) == HopCodecs("bf16", "none")
    assert codecs_of(MIXED, NAMES, 1) == HopCodecs("int8", "bf16")
    assert codecs_of(MIXED, NAMES, 2) == HopCodecs("fp16", "int4")


def test_the_last_word_counts() -> None:
    lines = [WireOverride(stages="gpt/*", activations="int8"), WireOverride(stages="*/0", activations="bf16")]
    assert codecs_of(WireSection(overrides=lines), NAMES, 1).activations == "bf16"
    assert codecs_of(WireSection(overrides=lines[::-1]), NAMES, 1).activations == "int8"


def test_a_learned_codec_says_how_its_codes_are_written() -> None:
    lines = [WireOverride(stages="*/1", learned=LearnedChange(bits=4, per="channel", signed=False))]
    wire = WireSection(activations="learned", gradients="int8", overrides=lines)
    assert codecs_of(wire, NAMES, 1) == HopCodecs("learned8", "int8")
    assert codecs_of(wire, NAMES, 2) == HopCodecs("learned4uc", "int8")
    assert codecs_of(wire, NAMES, 2, has_offsets=True).activations == "learned4uc+"


def test_codes_of_other_bits_than_agreed_are_refused() -> None:
    check_codecs([header("hidden", "learned4")], "learned4")
    with pytest.raises(MessageError, match="'hidden' came as learned2, where learned4 was agreed"):
        check_codecs([header("hidden", "learned2")], "learned4")
    with pytest.raises(MessageError, match="'gradient' came as learned4, where int8 was agreed"):
        check_codecs([header("gradient", "learned4")], "int8")


def test_the_names_of_all_stages_follow_from_one() -> None:
    assert names_of("gpt/1", 3) == list(NAMES)


def header(name: str, codec: str, dtype: str = "float32") -> TensorHeader:
    return TensorHeader(name, dtype, (4,), codec, 16)


def test_only_floats_that_were_computed_have_a_codec() -> None:
    check_codecs([header("hidden", "int8"), header("labels", "none", "int64"), header("weights", "none")], "int8")
    check_codecs([header("inputs", "none", "int64")], "int8")
    check_codecs([header("gradient", "bf16")], "bf16")


@pytest.mark.parametrize(
    "wrong",
    [header("hidden", "none"), header("hidden", "bf16"), header("labels", "int8"), header("inputs", "int8", "int64")],
)
def test_another_codec_than_was_agreed_is_refused(wrong: TensorHeader) -> None:
    with pytest.raises(MessageError, match=f"'{wrong.name}' came as {wrong.codec}"):
        check_codecs([wrong], "int8")


def test_sides_that_disagree_name_each_other_and_their_codecs() -> None:
    async def scenario() -> HopError:
        async with open_swarm(TINY, 2, replace(LIMITS, wire=WireSection(activations="int8"))) as swarm:
            swarm.services[1].limits = replace(LIMITS, wire=WireSection(gradients="bf16"))
            with pytest.raises(HopError) as caught:
                async with swarm.open():
                    pass
            return caught.value

    error = run_plain(scenario())
    assert (error.kind, error.peer) == ("RefusedError", "expert1")
    assert error.reason == (
        "stage 0 on expert0 opens its hop with activations as int8 and gradients as none, "
        "stage 1 on expert1 takes activations as none and gradients as bf16; give both the same config"
    )


def test_a_trainer_that_disagrees_is_refused_too() -> None:
    async def scenario() -> HopError:
        async with open_swarm(TINY, 1) as swarm:
            swarm.limits = replace(LIMITS, wire=WireSection(inputs="fp16"))
            with pytest.raises(HopError) as caught:
                async with swarm.open():
                    pass
            return caught.value

    error = run_plain(scenario())
    assert "the trainer on trainer opens its hop with activations as fp16 and gradients as none" in error.reason


def test_a_tensor_in_another_codec_than_agreed_breaks_the_route() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 1, replace(LIMITS, wire=WireSection(inputs="int8"))) as swarm:
            hello = replace(opening(swarm), codecs=HopCodecs("int8"))
            batch = TINY.batch(1)
            headers, payload = tensors.encode(batch, "none")
            async with raw_hop(swarm, hello) as (_, hop):
                await hop.send(Microbatch(1, 0, 1, 4, True, 4, tuple(headers)), payload)
                fault = await fault_of(hop)
            assert fault.kind == "MessageError"
            assert "tensor 'inputs' came as none, where int8 was agreed" in fault.reason

    run_plain(scenario())


@pytest.mark.parametrize(
    "wire",
    [
        WireSection(inputs="bf16", activations="int8", gradients="int8"),
        WireSection(activations="bf16", overrides=[WireOverride(stages="mlp/2", gradients="int4")], compression="on"),
    ],
    ids=["int8", "mixed"],
)
def test_training_with_codecs_comes_near_to_that_without(wire: WireSection) -> None:
    async def losses(limits: Limits) -> list[float]:
        async with open_swarm(MLP, 3, limits) as swarm, swarm.open() as link:
            return [sums["loss"] for sums in await train(link, MLP, range(1, 9), 4)]

    exact = run_plain(losses(LIMITS))
    rounded = run_plain(losses(replace(LIMITS, wire=wire)))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_every_hop_says_what_it_carries() -> None:
    async def scenario() -> list[HopCodecs]:
        async with open_swarm(MLP, 3, replace(LIMITS, wire=WireSection(activations="int8"))) as swarm, swarm.open():
            found = [service.opening for service in swarm.services]
        return [opened.codecs for opened in found if isinstance(opened, Open)]

    assert run_plain(scenario()) == [HopCodecs(), HopCodecs("int8"), HopCodecs("int8")]


LEARNED = WireSection(
    activations="learned",
    learned=LearnedCodes(bits=4),
    overrides=[WireOverride(stages="*/1", learned=LearnedChange(bits=7, per="channel"))],
)


LEARNERS: list[tuple[Recipe, Precision]] = [
    (MLP, "fp32"),
    (RESNET, "fp32"),
    (GPT, "fp32"),
    (RESNET, "fp16"),
    (GPT2, "fp16"),
]


@pytest.mark.parametrize(("recipe", "precision"), LEARNERS, ids=lambda case: getattr(case, "model", case))
def test_learned_codes_train_the_numbers_of_one_process(recipe: Recipe, precision: Precision) -> None:
    """Also over the evaluations between steps, with offsets, and where a tie spans the boundaries."""
    recipe = replace(recipe, wire=LEARNED, quant=QuantSection(method="lsq+"), precision=precision)
    seen: list[HopCodecs] = []

    async def scenario() -> tuple[list[dict[str, float]], torch.Tensor]:
        async with open_swarm(recipe, 3) as swarm, swarm.open() as link:
            seen.extend(service.opening.codecs for service in swarm.services if isinstance(service.opening, Open))
            await link.evaluate(recipe.batch(99), 2)
            sums = await train(link, recipe, range(1, 6), 4)
            sums.append(await link.evaluate(recipe.batch(99), 2))
        return sums, swarm.flat()

    sums, flat = run_plain(scenario())
    assert seen == [HopCodecs(), HopCodecs("learned4+"), HopCodecs("learned7c+")]
    whole = recipe.whole(3)
    assert train_whole(whole, recipe, range(1, 6), 4) == sums[:-1]
    assert torch.equal(whole.flatten(), flat)
    batch = recipe.batch(99)
    loss = whole.loss(MicrobatchId(6, 0), batch.pop("inputs"), batch, recipe.samples, train=False).sums["loss"]
    assert sums[-1]["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_a_hop_carries_the_bits_of_codes_and_little_more(bits: int) -> None:
    wire = WireSection(activations="learned", learned=LearnedCodes(bits=bits), compression="off")
    recipe = replace(MLP, options={"hidden": 4096, "depth": 1}, samples=32, wire=wire)
    transports: dict[str, Transport] = {}

    def keep(transport: Transport, name: str) -> Transport:
        return transports.setdefault(name, transport)

    async def scenario() -> int:
        async with open_swarm(recipe, 2, wrap=keep) as swarm, swarm.open() as link:
            before = transports["expert0"].traffic()["pipeline"].sent
            await link.evaluate(recipe.batch(1), 2)
            return transports["expert0"].traffic()["pipeline"].sent - before

    codes = recipe.samples * 4096 * bits // 8
    assert codes < run_plain(scenario()) < codes + 1500
