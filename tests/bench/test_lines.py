"""From runs to lines: which peer stands beside what, and where the goals are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from bench import chain, links, pipeline, wire
from bench.case import Line
from bench.chain import open_chain
from bench.gauge import Reached, Runs
from bench.hivemind import PeerError, enter_if_possible
from bench.machines import HERE, Machine, MachinesError
from bench.ours import Form
from bench.pipeline import Measured
from bench.recipes import RESNET, least_bytes
from tests.support import run

INT8 = Form("int8")


def reached(rate: float, **more: float) -> Runs:
    return [Reached(rate, cpu=1.0, wire=3000.0, **more)]


def measured(hivemind: dict[str, Runs]) -> Measured:
    exact = {form: least_bytes(RESNET, 2, form.codec) for form in pipeline.FORMS}
    ours = {form: reached(300.0, messages=1.01 * exact[form], busy=0.8) for form in pipeline.FORMS}
    return Measured(0.5, threads=reached(250.0), together=reached(400.0), ours=ours, hivemind=hivemind)


def of_form(form: Form, hivemind: dict[str, Runs]) -> dict[str, Line]:
    return {f"{line.case}|{line.peer}": line for line in pipeline.of_form("x", RESNET, 2, form, measured(hivemind))}


def test_the_bound_is_that_of_1f1b() -> None:
    lines = of_form(INT8, {})
    # Equal stages: M / (M + S - 1) of what two processes reach side by side.
    bound = next(line for line in lines.values() if line.case.endswith("bound"))
    assert bound.peer_value == pytest.approx(400 * 8 / 9)
    assert bound.goal == "ratio >= 0.85"
    assert not bound.ok
    busy = next(line for line in lines.values() if line.case.endswith("busiest stage"))
    assert busy.peer_value == pytest.approx(8 / 9)


def test_hivemind_stands_beside_with_each_compression() -> None:
    lines = of_form(INT8, {"NONE": reached(90.0), "UNIFORM_8BIT": reached(110.0)})
    assert lines["x, int8: hivemind|hivemind, NONE"].ok
    assert not lines["x, int8: hivemind|hivemind, UNIFORM_8BIT"].ok
    assert lines["x, int8: on the interface|hivemind, UNIFORM_8BIT"].ratio == 1.0


def test_messages_are_held_to_the_tensors_in_them() -> None:
    line = next(line for line in of_form(INT8, {}).values() if line.case.endswith("messages"))
    assert line.ratio == pytest.approx(1 / 1.01)
    assert line.ok


def test_the_exact_codec_is_shown_without_goals_for_speed() -> None:
    lines = of_form(Form("none"), {"NONE": reached(90.0)}).values()
    assert [line.goal for line in lines if not line.case.endswith("messages")] == [None, None, None]


def test_where_hivemind_cannot_be_had_it_is_left_out_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def open_nothing(*_: object, **__: object) -> AsyncIterator[None]:
        raise PeerError("no package index")
        yield

    monkeypatch.setattr(chain, "open_peer", open_nothing)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            assert await enter_if_possible(stack, open_chain(RESNET, [HERE])) is None

    run(scenario())
    assert "left out: no package index" in caplog.text
    assert not any("hivemind" in key for key in of_form(INT8, {}))


def test_codecs_are_measured_without_hivemind_too(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def open_nothing(_: str) -> AsyncIterator[None]:
        raise PeerError("no package index")
        yield

    monkeypatch.setattr(wire, "open_peer", open_nothing)
    monkeypatch.setattr(wire, "SHAPE", (256,))
    monkeypatch.setattr(wire, "QUICK_RUNS", 1)

    async def scenario() -> list[Line]:
        return [line async for line in wire.bench(quick=True)]

    lines = run(scenario())
    assert len(lines) == 3 * len(wire.PAIRS)
    assert all(line.peer is None and "ratio" not in (line.goal or "") for line in lines)


def test_over_links_the_goal_is_for_int8_at_the_middle_rate() -> None:
    found: dict[Form | str, Runs] = {form: reached(300.0) for form in links.FORMS}
    found |= {"NONE": reached(20.0), "UNIFORM_8BIT": reached(40.0)}
    lines = [line for line in links.lines("y", found, links.BESIDE_HIVEMIND) if line.unit == "samples/s"]
    assert [(line.case, line.peer) for line in lines if line.goal] == [
        ("y, int8", "hivemind, NONE"),
        ("y, int8", "hivemind, UNIFORM_8BIT"),
    ]
    assert [line.ok for line in lines if line.goal] == [True, False]


def test_over_links_ours_is_shown_without_a_peer_too() -> None:
    lines = list(links.lines("y", {form: reached(300.0) for form in links.FORMS}, links.BESIDE_HIVEMIND))
    assert len(lines) == 2 * len(links.FORMS)
    assert all(line.peer is None and line.goal is None for line in lines)


def test_without_root_there_are_no_links_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def open_nothing(number: int, rate: float) -> AsyncIterator[list[Machine]]:
        raise MachinesError("network namespaces need root")
        yield []

    monkeypatch.setattr(links, "open_machines", open_nothing)

    async def scenario() -> list[Line]:
        return [line async for line in links.bench(quick=True)]

    assert run(scenario()) == []
    assert "left out: network namespaces need root" in caplog.text
