"""The learning beside int8 blocks, without its processes: bytes are those of the forms, and exact is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import boundary
from bench.boundary import BLOCKS, CONFIGS, DIGITS, EXACT, Learned, Learner, lines
from distqat.config import RunConfig, load
from distqat.data.sources import Source, open_source
from tests.support import run

STEPS = 2
TRIAL = replace(DIGITS, held_out=40)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load(CONFIGS / "digits.yaml", ["data.batch=8", "model.options={width: 4}"]).run_config()


@pytest.fixture(scope="module")
def source(config: RunConfig) -> Source:
    return open_source(config)


def test_bytes_are_counted_in_training_only(config: RunConfig, source: Source) -> None:
    found = {form: run(Learner(config, source).learn(TRIAL, form, 1, STEPS)) for form in boundary._forms(False)}
    elements = found[EXACT].bytes / 4
    assert elements == 4 * 8 * 8
    # Four microbatches of two samples: a step for each.
    assert found["learned, 2 bits"].bytes == elements / 4 + 4 / 2
    assert found["learned, 8 bits"].bytes == elements + 4 / 2
    assert found[BLOCKS].bytes == elements + 4 * elements / 256
    assert all(0 <= one.value <= 100 for one in found.values())


def test_goals_are_of_whole_trainings() -> None:
    found = {EXACT: [Learned(95.0, 400.0)], BLOCKS: [Learned(94.0, 101.0)], "learned, 4 bits": [Learned(93.5, 50.0)]}
    for steps, goal in ((DIGITS.steps, "ratio >= 0.99"), (12, None)):
        held_out = list(lines(DIGITS, found, steps))[1::2]
        assert [line.goal for line in held_out] == [None, None, goal]
        assert all(line.ok for line in held_out)
