"""What may be said of the wire, and what is refused."""

from __future__ import annotations

import pytest

from distqat import config
from distqat.errors import ConfigError
from distqat.wire_sections import LearnedCodes


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(None, overrides)
    return caught.value.reason


LEARNED = "wire.activations=learned"


def test_settings_of_learned_codes() -> None:
    lines = "wire.overrides=[{stages: '*/1', learned: {bits: 4}}, {stages: '*/[12]', learned: {signed: false}}]"
    wire = config.load(None, [LEARNED, "wire.learned={per: channel}", "model.stages=3", lines]).wire
    assert wire.learned_of("mlp/0") == LearnedCodes(bits=8, per="channel", signed=True)
    assert wire.learned_of("mlp/1") == LearnedCodes(bits=4, per="channel", signed=False)
    assert wire.can_learn


def test_one_boundary_may_learn_and_another_not() -> None:
    lines = "wire.overrides=[{stages: '*/1', activations: learned, learned: {bits: 2}}]"
    wire = config.load(None, ["wire.activations=int8", "model.stages=3", lines]).wire
    assert (wire.activations_of("mlp/0"), wire.learned_of("mlp/0")) == ("int8", None)
    assert (wire.activations_of("mlp/1"), wire.learned_of("mlp/1")) == ("learned", LearnedCodes(bits=2))
    assert wire.can_learn
    assert not config.load(None, ["wire.activations=int8"]).wire.can_learn


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["wire.gradients=learned"], "wire.gradients: learned is a codec of activations"),
        (["wire.inputs=learned"], "wire.inputs: learned is a codec of activations"),
        (["wire.overrides=[{stages: '*/1', gradients: learned}]"], "overrides.0.gradients: learned is a codec of acti"),
        ([LEARNED, "model.stages=1"], "wire.activations is learned, but a model of one stage sends none"),
        ([LEARNED, "sync.warmup_steps=0"], "wire: codec learned takes its first steps from data"),
        ([LEARNED, "wire.learned={bits: 1}"], "wire.learned.bits: Input should be greater than or equal to 2"),
        ([LEARNED, "wire.learned={bits: 9}"], "wire.learned.bits: Input should be less than or equal to 8"),
        ([LEARNED, "wire.learned={per: row}"], "wire.learned.per: Input should be 'tensor' or 'channel'"),
        (["wire.learned={bits: 4}"], "wire.learned is for activations with codec learned, and no stage sends such"),
        (
            ["wire.overrides=[{stages: '*/0', learned: {bits: 4}}]"],
            "wire.overrides: no stage of '*/0' sends activations as learned",
        ),
        (
            [LEARNED, "model.stages=3", "wire.overrides=[{stages: '*/2', learned: {bits: 4}}]"],
            "wire.overrides: no stage of '*/2' sends activations as learned",
        ),
        (
            ["wire.overrides=[{stages: '*/1', activations: learned}]"],
            "the last stage sends no activations, and '*/1' names no other",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


def test_a_run_with_learned_codes_travels_as_it_is() -> None:
    lines = "wire.overrides=[{stages: '*/0', learned: {bits: 4}}]"
    run = config.load(None, [LEARNED, lines]).run_config()
    again = type(run).from_canonical(run.canonical())
    assert (again, again.id) == (run, run.id)
