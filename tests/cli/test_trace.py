"""A step of a pipeline, collected from its peers and written as a trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.cli import perfetto
from distqat.cli.perfetto import Told
from distqat.cli.trace import Steps, Trace, choose, collect, members, report, resolve
from distqat.errors import ConfigError, StaleError, UnreachableError
from distqat.ids import Endpoint, PeerId, Seat, StageIndex
from distqat.roles import messages
from distqat.roles.remote import Remote
from distqat.roles.status import PeerStatus, PipelineStatus, RoleStatus, SwarmStatus
from distqat.roles.trace.messages import MAX_SPANS, StageTrace, StepTrace, TraceReply, TraceRequest, TraceSpan
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service
from distqat.timeline import BESIDE, TRAINER, Timelines
from distqat.times import DOWN, UP
from tests.support import run_virtual

PORT = 7000
SEATS = tuple(Seat(PeerId(f"expert{n}"), Endpoint(f"expert{n}", PORT), StageIndex(n)) for n in range(2))
LINE = PipelineStatus("p1-00ff", 1, SEATS, 12, phase="training")


def swarm_of(*lines: PipelineStatus) -> SwarmStatus:
    """A trainer that drives these pipelines."""
    role = RoleStatus("trainer", "training", "", pipelines=lines)
    return SwarmStatus((PeerStatus("trainer", Endpoint("trainer", PORT), roles=(role,)),))


# What is asked for.


def test_steps_are_a_number_a_range_or_the_last() -> None:
    assert Steps.parse("last") == Steps(0, 0)
    assert Steps.parse("12") == Steps(12, 12)
    assert Steps.parse("12-14") == Steps(12, 14)
    assert (str(Steps(3, 3)), str(Steps(3, 5))) == ("step 3", "steps 3 to 5")


@pytest.mark.parametrize("text", ["", "0", "-1", "5-3", "first", "1-2-3", "1.5", "²"])
def test_what_is_no_step_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is no step"):
        Steps.parse(text)


def test_a_pipeline_is_found_by_its_name_or_because_it_is_the_only_one() -> None:
    one, two = swarm_of(LINE), swarm_of(LINE, replace(LINE, pipeline="p2-00ff"))
    assert choose(one, "") == choose(two, "p1-00ff") == choose(two, "p1") == "p1-00ff"
    with pytest.raises(ConfigError, match=r"several pipelines; .*--pipeline: there are p1-00ff, p2-00ff"):
        choose(two, "")
    with pytest.raises(ConfigError, match="no pipeline 'p9': there are p1-00ff"):
        choose(one, "p9")
    with pytest.raises(ConfigError, match="there is no pipeline in this swarm"):
        choose(SwarmStatus(), "")


def test_its_members_are_the_trainer_and_the_experts() -> None:
    assert set(members(swarm_of(LINE), LINE.pipeline)) == {"trainer", "expert0", "expert1"}


def part(oldest: int, newest: int) -> list[StageTrace]:
    return [StageTrace("mlp/0", 0, oldest, newest)]


def test_the_last_step_is_one_that_all_have() -> None:
    assert resolve(Steps(), "p", [part(3, 9), part(4, 8), part(0, 0)]) == Steps(8, 8)
    # An expert that has changed its stage still knows of the former one.
    assert resolve(Steps(), "p", [part(3, 9), [*part(1, 2), *part(5, 8)]]) == Steps(8, 8)


def test_unknown_steps_are_refused_with_what_there_is() -> None:
    parts = [part(3, 9), part(4, 8)]
    with pytest.raises(StaleError, match=r"step 10 of pipeline p: not committed yet; .* know of steps 3 to 8"):
        resolve(Steps(10, 10), "p", parts)
    with pytest.raises(StaleError, match="steps 1 to 2 of pipeline p: forgotten"):
        resolve(Steps(1, 2), "p", parts)
    with pytest.raises(StaleError, match="no step of pipeline p is committed yet"):
        resolve(Steps(), "p", [part(0, 0)])
    assert resolve(Steps(4, 5), "p", parts) == Steps(4, 5)
    # The trace says which steps are in it, not which were asked for.
    assert resolve(Steps(2, 5), "p", parts) == Steps(3, 5)
    assert resolve(Steps(4, 2000), "p", parts) == Steps(4, 9)


# How it is asked.


@dataclass
class Daemon:
    """A peer's timelines, by a clock of its own."""

    timelines: Timelines
    skew: float
    asked: int = 0

    async def trace(self, request: bytes, caller: Caller) -> bytes:
        self.asked += 1
        return TraceReply.of(self.timelines, TraceRequest.decode(request)).encode()


@asynccontextmanager
async def open_daemons(network: Network, swarm: SwarmStatus) -> AsyncIterator[dict[str, Daemon]]:
    """The trainer, who also tells of the swarm, and two experts; their clocks are hours apart."""
    loop = asyncio.get_running_loop()

    async def tell(request: bytes, caller: Caller) -> bytes:
        return messages.encode(messages.SwarmReply(swarm.peers))

    daemons = {}
    async with AsyncExitStack() as stack:
        for name, skew in (("trainer", 5000.0), ("expert0", -3000.0), ("expert1", 40_000.0)):
            timelines = Timelines(lambda skew=skew: loop.time() + skew, lambda *line: None)  # type: ignore[misc]
            daemons[name] = daemon = Daemon(timelines, skew)
            server = await stack.enter_async_context(network.transport(name).serve(Endpoint(name, PORT)))
            server.add(Service(messages.SERVICE, {"Trace": daemon.trace, "Swarm": tell}))
        yield daemons


def play(daemons: dict[str, Daemon], step: int, microbatches: int = 2) -> None:
    """One step: each thing lasts 10 ms after the one before, whoever does it."""
    parts = {
        "trainer": daemons["trainer"].timelines.of(LINE.pipeline, "trainer", TRAINER),
        "expert0": daemons["expert0"].timelines.of(LINE.pipeline, "mlp/0", 0),
        "expert1": daemons["expert1"].timelines.of(LINE.pipeline, "mlp/1", 1),
    }
    now = asyncio.get_running_loop().time()
    for index in range(microbatches):
        for name, kind, way in (
            ("trainer", "send", DOWN),
            ("expert0", "receive", DOWN),
            ("expert0", "forward", ""),
            ("expert0", "encode", DOWN),
            ("expert1", "decode", DOWN),
            ("expert1", "loss", ""),
            ("expert1", "send", UP),
            ("expert0", "backward", ""),
        ):
            begin = now + daemons[name].skew
            parts[name].add(kind, begin, begin + 0.01, step, index, way, 100, 400)
            now += 0.01
    for timeline in parts.values():
        timeline.committed(step)


def asking(network: Network) -> Remote:
    return Remote(network.transport("observer"), Endpoint("trainer", PORT), seconds=20.0)


def slices(tree: dict[str, Any], kind: str = "") -> list[dict[str, Any]]:
    """The events that have a length, in the order of their beginning."""
    events = [event for event in tree["traceEvents"] if event["ph"] == "X" and kind in ("", event["name"])]
    return sorted(events, key=lambda event: event["ts"])


def test_clocks_that_are_hours_apart_are_aligned_by_the_quickest_answer() -> None:
    async def scenario() -> None:
        network = Network(seed=5, delay=0.001, jitter=0.05)
        async with open_daemons(network, swarm_of(LINE)) as daemons:
            play(daemons, 1)
            loop = asyncio.get_running_loop()
            trace = await collect(asking(network), Steps(), clock=loop.time)
            assert (trace.pipeline, trace.steps, trace.silent) == (LINE.pipeline, Steps(1, 1), ())
            for told in trace.told:
                wrong = abs(told.offset - daemons[told.peer].skew)
                assert wrong <= told.error <= 0.025
                assert daemons[told.peer].asked == 8
            order = [event["name"] for event in slices(perfetto.trace(trace.pipeline, trace.told))]
            assert len(order) == 16

    run_virtual(scenario())


def test_on_one_clock_everything_stands_in_the_order_in_which_it_happened() -> None:
    async def scenario() -> None:
        network = Network(seed=5, delay=0.002)
        async with open_daemons(network, swarm_of(LINE)) as daemons:
            play(daemons, 1)
            play(daemons, 2)
            trace = await collect(asking(network), Steps(2, 2), clock=asyncio.get_running_loop().time)
            tree = perfetto.trace(trace.pipeline, trace.told)
        assert [event["name"] for event in slices(tree)] == [
            "send", "receive", "forward", "encode", "decode", "loss", "send", "backward",
        ] * 2  # fmt: skip
        assert [event["ts"] for event in slices(tree)] == pytest.approx([10_000.0 * n for n in range(16)], abs=0.01)
        assert {event["args"]["step"] for event in slices(tree)} == {2}
        assert [event["args"] for event in slices(tree, "encode")] == [
            {"step": 2, "index": index, "bytes": 100, "raw": 400} for index in range(2)
        ]
        names = [event["args"]["name"] for event in tree["traceEvents"] if event["name"] == "process_name"]
        assert names == ["trainer (trainer)", "mlp/0 (expert0)", "mlp/1 (expert1)"]
        lanes = [
            (event["pid"], event["args"]["name"]) for event in tree["traceEvents"] if event["name"] == "thread_name"
        ]
        assert lanes == [
            (0, "wire down"), (1, "compute"), (1, "codec"), (1, "wire down"), (2, "compute"), (2, "codec"),
            (2, "wire up"),
        ]  # fmt: skip

    run_virtual(scenario())


def test_a_peer_that_does_not_answer_is_named_and_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> Trace:
        network = Network(seed=5, delay=0.002)
        async with open_daemons(network, swarm_of(LINE)) as daemons:
            play(daemons, 1)
            network.partition({"observer"}, {"expert1"})
            trace = await collect(asking(network), Steps())
            network.partition({"observer"}, {"expert0"})
            network.partition({"observer"}, {"trainer"})
            with pytest.raises(UnreachableError):
                await collect(asking(network), Steps())
            return trace

    trace = run_virtual(scenario())
    assert [told.peer for told in trace.told] == ["trainer", "expert0"]
    assert [silent.peer for silent in trace.silent] == ["expert1"]
    report(trace, tmp_path / "trace.json")
    assert len(slices(json.loads((tmp_path / "trace.json").read_text()), "forward")) == 2
    shown = capsys.readouterr().out
    assert "not in it: expert1: " in shown
    assert "mlp/0" in shown


def test_a_peer_that_joined_later_is_named_too() -> None:
    async def scenario() -> None:
        network = Network(seed=5, delay=0.002)
        async with open_daemons(network, swarm_of(LINE)) as daemons:
            play(daemons, 1)
            daemons["expert0"].timelines = Timelines(asyncio.get_running_loop().time, lambda *line: None)
            trace = await collect(asking(network), Steps())
            assert [(silent.peer, silent.reason) for silent in trace.silent] == [
                ("expert0", "has no part in this pipeline yet")
            ]

    run_virtual(scenario())


def test_a_file_that_cannot_be_written_is_a_friendly_error(tmp_path: Path) -> None:
    told = Told("a", 0.0, 0.0, (StageTrace("mlp/0", 0, 1, 1, (), (SPAN,)),))
    with pytest.raises(ConfigError, match="cannot be written"):
        report(Trace("p", Steps(1, 1), (told,), ()), tmp_path / "no" / "such" / "folder.json")


# What is answered.


def test_a_huge_step_makes_no_huge_answer() -> None:
    timelines = Timelines(lambda: 1e6, lambda *line: None)
    timeline = timelines.of("p", "mlp/0", 0)
    for index in range(65_536):
        timeline.add("forward", float(index), index + 0.5, 1, index)
    timeline.committed(1)
    data = TraceReply.of(timelines, TraceRequest("p", 1, 1, 1_000_000)).encode()
    assert len(data) < 500_000
    (told,) = TraceReply.decode(data).stages
    assert len(told.spans) == MAX_SPANS
    assert told.left_out == 65_536 - MAX_SPANS
    tree = perfetto.trace("p", [Told("a", 0.0, 0.0, (told,))])
    assert tree["otherData"]["left_out"] == {"mlp/0": told.left_out}


def test_who_wants_no_spans_gets_none() -> None:
    timelines = Timelines(lambda: 7.0, lambda *line: None)
    timelines.of("p", "mlp/0", 0).add("forward", 1.0, 2.0, 1)
    timelines.of("p", "mlp/0", 0).committed(1)
    assert TraceReply.of(timelines, TraceRequest("p")) == TraceReply(7.0, (StageTrace("mlp/0", 0, 1, 1),))
    assert TraceReply.of(timelines, TraceRequest("q", 1, 1, 10)).stages == ()


# How it is drawn.

SPAN = TraceSpan("forward", 1.0, 2.0, 1, 0, "", 0, 0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20))))
def test_rows_hold_what_does_not_overlap_and_there_are_no_more_than_needed(times: list[tuple[int, int]]) -> None:
    spans = [replace(SPAN, begin=begin, end=begin + seconds) for begin, seconds in sorted(times)]
    rows = perfetto.rows(spans)
    for row in set(rows):
        own = [span for span, place in zip(spans, rows, strict=True) if place == row]
        assert all(first.end <= second.begin for first, second in pairwise(own))
    # The naive count: at the beginning of some span so many were under way.
    most = max((sum(s.begin <= span.begin < s.end for s in spans) for span in spans), default=0)
    assert len(set(rows)) == most


def test_what_overlaps_within_a_lane_is_drawn_in_several_rows() -> None:
    spans = tuple(replace(SPAN, kind="decode", begin=begin, end=begin + 2.0, way=DOWN) for begin in (1.0, 2.0, 3.0))
    tree = perfetto.trace("p", [Told("a", 0.0, 0.0, (StageTrace("mlp/0", 0, 1, 1, (), spans),))])
    threads = [event["args"]["name"] for event in tree["traceEvents"] if event["name"] == "thread_name"]
    assert threads == ["codec", "codec 2"]


def test_a_round_beside_steps_has_a_lane_of_its_own() -> None:
    beside = replace(SPAN, kind="round", step=0, begin=0.5, end=9.0, way=BESIDE)
    blocking = replace(SPAN, kind="round", step=0, begin=3.0, end=4.0)
    step = StepTrace(1, 0.0, 6.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0, 0)
    stage = StageTrace("mlp/0", 0, 1, 1, (step,), (beside, SPAN, blocking))
    tree = perfetto.trace("p", [Told("a", 0.0, 0.0, (stage,))])
    threads = {event["tid"]: event["args"]["name"] for event in tree["traceEvents"] if event["name"] == "thread_name"}
    drawn = [(event["name"], threads[event["tid"]]) for event in slices(tree) if event["name"] != "wait"]
    assert sorted(drawn) == [("forward", "compute"), ("round", "compute"), ("round", "round beside steps")]
    # The device waits meanwhile as if there was none.
    assert [(span.begin, span.end) for span in perfetto.idle(stage)] == [(0.0, 1.0), (2.0, 3.0)]


def test_between_the_spans_of_a_device_it_waits() -> None:
    step = StepTrace(1, 0.0, 6.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0, 0)
    spans = (SPAN, replace(SPAN, kind="decode", way=DOWN, begin=2.0, end=4.0), replace(SPAN, begin=4.0, end=6.0))
    stage = StageTrace("mlp/0", 0, 1, 1, (step,), spans)
    assert [(span.begin, span.end) for span in perfetto.idle(stage)] == [(0.0, 1.0), (2.0, 4.0)]
    tree = perfetto.trace("p", [Told("a", 0.0, 0.0, (stage,))])
    assert sum(event["dur"] for event in slices(tree, "wait")) == pytest.approx(step.wait * 1e6)
    # Where spans are missing nobody knows, and a trainer has no device.
    assert not list(perfetto.idle(replace(stage, left_out=1)))
    assert not list(perfetto.idle(replace(stage, stage=TRAINER)))
