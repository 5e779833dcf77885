"""Which codec a hop takes: chosen by the sender, known to both sides, and held to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distqat.errors import MessageError
from distqat.pipeline.hop_codecs import HopCodecs, check_codecs, codecs_of, names_of
from distqat.pipeline.route import HopError, Limits
from distqat.pipeline.words import Microbatch, Open
from distqat.sections import WireOverride, WireSection
from distqat.wire import tensors
from distqat.wire.tensors import TensorHeader
from tests.pipeline.swarm import LIMITS, MLP, TINY, open_swarm, run_plain, train
from tests.pipeline.test_service import fault_of, opening, raw_hop

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
