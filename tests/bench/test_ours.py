"""A tiny pipeline in real processes, and the baseline beside it."""

from __future__ import annotations

import os

import pytest

from bench.gauge import Gauge, Reached
from bench.machines import HERE
from bench.ours import Form, open_ours
from bench.recipes import Recipe, least_bytes
from bench.whole import open_whole
from distqat.model.shapes import DataShape
from tests.support import run

TINY = Recipe("resnet", DataShape("image", (1, 8, 8), 10), 64)
NONE, INT8 = Form("none"), Form("int8")


def test_a_pipeline_is_driven_and_what_it_costs_is_counted() -> None:
    async def scenario() -> dict[Form, Reached]:
        async with open_ours(TINY, [NONE, INT8], [HERE, HERE]) as ours:
            return {form: await ours.train(form, 2) for form in (NONE, INT8, NONE)}

    found = run(scenario(), timeout=90.0)
    for form, reached in found.items():
        least = least_bytes(TINY, 2, form.codec)
        assert least <= reached.messages < 1.1 * least, "its own messages, and nothing of the other form"
        assert reached.wire > 0.9 * reached.messages, "all of them left through loopback"
        assert 0 < reached.busy <= 1
        assert reached.rate > 0
        assert reached.cpu > 0


def test_forms_say_how_they_travel() -> None:
    assert [str(form) for form in (NONE, Form("int8", "auto"))] == ["none", "int8, zstd auto"]
    wire = Form("int8", "auto").config(TINY, 2).wire
    assert (wire.activations, wire.gradients, wire.compression, wire.inputs) == ("int8", "int8", "auto", "none")


def test_the_baseline_trains_and_knows_its_largest_stage() -> None:
    async def scenario() -> tuple[int, float]:
        async with open_whole(TINY, 8, 1) as whole:
            assert await whole.train(2) > 0
            assert whole.stage.version == 2
            assert await whole.largest_share(1) == 1
            return await whole.steps_in(0.0), await whole.largest_share(3)

    steps, share = run(scenario())
    assert steps == 1, "at least one"
    assert 1 / 3 <= share < 1


def test_a_gauge_counts_the_cpu_of_processes_and_what_they_start() -> None:
    async def work() -> float:
        total = sum(number * number for number in range(2_000_000))
        assert total > 0
        return 0.5

    reached = run(Gauge([HERE], [os.getpid()]).measure(10, work))
    assert reached.rate == pytest.approx(20)
    assert reached.cpu > 0
    assert reached.wire >= 0
