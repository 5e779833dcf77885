"""In the trace of a pipeline whose stages take known times, 1F1B can be seen as the paper draws it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from distqat.cli import perfetto
from distqat.cli.perfetto import Told
from distqat.ids import Endpoint, Seat, StageIndex
from distqat.model.device import Device, Priority
from distqat.pipeline.link import open_route
from distqat.pipeline.route import Route
from distqat.pipeline.service import PipelineService
from distqat.roles.trace.messages import StageTrace, TraceReply, TraceRequest
from distqat.rpc.local import Network
from distqat.timeline import Timelines
from tests.pipeline.swarm import LIMITS, ME, MLP, PIPELINE, Expert, peer
from tests.support import run_virtual

T = TypeVar("T")

MICROBATCHES = 8
FORWARD, BACKWARD = 0.1, 0.2
"""Virtual seconds of a microbatch in each stage."""

STEPS = 3


@dataclass
class Clock:
    """The loop's time, `skew` seconds ahead; work of a `TimedDevice` begins when its turn came."""

    skew: float
    since: float | None = None  # What is told next, once; None: the time.

    def __call__(self) -> float:
        now = asyncio.get_running_loop().time() if self.since is None else self.since
        self.since = None
        return now + self.skew


class TimedDevice(Device):
    """Takes known virtual times, one job after the other."""

    def __init__(self, device: Device, clock: Clock, is_last: bool) -> None:
        self.torch_device = device.torch_device
        self._clock = clock
        self._turn = asyncio.Lock()
        self._times = {
            Priority.FORWARD: FORWARD,
            Priority.BACKWARD: FORWARD + BACKWARD if is_last else BACKWARD,
            Priority.OTHER: 0.0,
        }

    async def run(self, work: Callable[[], T], priority: Priority = Priority.OTHER) -> T:
        async with self._turn:
            begin = asyncio.get_running_loop().time()
            await asyncio.sleep(self._times[priority])
            self._clock.since = begin if self._times[priority] else None
            return work()


@dataclass
class Peers:
    """The timelines of a pipeline's peers, by name, and the metric lines that came of them."""

    timelines: dict[str, Timelines] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    lines: list[tuple[str, Mapping[str, str], Mapping[str, float]]] = field(default_factory=list)

    def add(self, name: str) -> Timelines:
        self.clocks[name] = clock = Clock(1000.0 * len(self.clocks))
        self.timelines[name] = Timelines(clock, lambda *line: self.lines.append(line))
        return self.timelines[name]

    def stage(self, name: str) -> StageTrace:
        request = TraceRequest(PIPELINE, 2, STEPS, 10_000)
        (stage,) = TraceReply.of(self.timelines[name], request).stages
        return stage

    def trace(self) -> dict[str, Any]:
        told = [Told(name, self.clocks[name].skew, 0.0, (self.stage(name),)) for name in self.timelines]
        return perfetto.trace(PIPELINE, told)


@asynccontextmanager
async def open_peers(stages: int) -> AsyncIterator[Peers]:
    """A pipeline that has done some steps, over a network that takes no time."""
    network, peers, seats = Network(seed=3), Peers(), []
    run = MLP.config(stages).id
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(Device.open("cpu", threads=1))
        for index in range(stages):
            timelines = peers.add(peer(index))
            timed = TimedDevice(device, peers.clocks[peer(index)], index == stages - 1)
            expert = Expert(MLP.stage(index, stages), timed)
            transport = network.transport(peer(index))
            server = await stack.enter_async_context(transport.serve(Endpoint(peer(index), 0)))
            service = PipelineService(expert, transport, peer(index), run, LIMITS, timelines)
            server.add(service.service())
            seats.append(Seat(peer(index), server.endpoint, StageIndex(index)))
        route = Route(PIPELINE, 1, tuple(seats))
        opened = open_route(network.transport(ME), ME, run, route, 0, LIMITS, timelines=peers.add(ME))
        async with opened as link:
            for step in range(1, STEPS + 1):
                await link.submit(step, MLP.batch(step), MICROBATCHES)
            await link.result(STEPS)
        yield peers


def computed(tree: dict[str, Any], stage: int, step: int) -> list[dict[str, Any]]:
    """What the device of a stage computed for a step, in the order of the trace."""
    events = [
        event
        for event in tree["traceEvents"]
        if event["ph"] == "X" and event["cat"] == "compute" and event["name"] in ("forward", "backward", "loss")
    ]
    # The trainer is process 0.
    chosen = [event for event in events if event["pid"] == stage + 1 and event["args"]["step"] == step]
    return sorted(chosen, key=lambda event: event["ts"])


@pytest.mark.parametrize("stages", [2, 3])
def test_the_shape_of_1f1b_can_be_seen(stages: int) -> None:
    async def scenario() -> None:
        async with open_peers(stages) as peers:
            tree = peers.trace()
        for step in range(2, STEPS + 1):
            rows = [computed(tree, stage, step) for stage in range(stages)]
            for stage, row in enumerate(rows):
                kinds = "".join(event["name"][0] for event in row)
                ahead = stages - 1 - stage
                # Warm-up, one forward and one backward in turn, cool-down.
                expected = "f" * ahead + "fb" * (MICROBATCHES - ahead) + "b" * ahead
                assert kinds == (expected if ahead else "l" * MICROBATCHES), f"stage {stage}"
                assert all(first["ts"] + first["dur"] <= second["ts"] + 0.01 for first, second in pairwise(row))
            for above, below in pairwise(rows):
                for index in range(MICROBATCHES):
                    assert ended(above, "forward", index) <= began(below, ("forward", "loss"), index) + 0.01
                    assert ended(below, ("backward", "loss"), index) <= began(above, ("backward",), index) + 0.01

    run_virtual(scenario(), debug=False)


def began(row: list[dict[str, Any]], kinds: tuple[str, ...], index: int) -> float:
    """Of the one event of that kind and microbatch, in microseconds."""
    (event,) = [event for event in row if event["name"] in kinds and event["args"]["index"] == index]
    return float(event["ts"])


def ended(row: list[dict[str, Any]], kinds: str | tuple[str, ...], index: int) -> float:
    """Its end."""
    (event,) = [event for event in row if event["name"] in kinds and event["args"]["index"] == index]
    return float(event["ts"] + event["dur"])


@pytest.mark.parametrize("stages", [2, 3])
def test_waiting_is_the_bubble_that_the_formula_says(stages: int) -> None:
    async def scenario() -> None:
        async with open_peers(stages) as peers:
            whole = (MICROBATCHES + stages - 1) * (FORWARD + BACKWARD)
            for index in range(stages):
                steps = peers.stage(peer(index)).steps
                assert [step.step for step in steps] == list(range(2, STEPS + 1))
                for step in steps:
                    assert step.end - step.begin == pytest.approx(whole)
                    assert step.compute == pytest.approx(MICROBATCHES * (FORWARD + BACKWARD))
                    assert step.wait == pytest.approx((stages - 1) * (FORWARD + BACKWARD))
            hops = [(labels["stage"], values["step"]) for kind, labels, values in peers.lines if kind == "hop"]
            names = ["trainer", *(f"mlp/{index}" for index in range(stages))]
            assert sorted(hops) == sorted((name, step) for name in names for step in range(1, STEPS + 1))

    run_virtual(scenario(), debug=False)


def test_what_waits_for_gradients_is_in_the_metrics() -> None:
    async def scenario() -> None:
        async with open_peers(3) as peers:
            most: dict[str, float] = {}
            for _, labels, values in peers.lines:
                most[labels["stage"]] = max(most.get(labels["stage"], 0.0), values["stashed"])
            # The last stage computes its backward at once, the trainer nothing.
            assert {name for name, stashed in most.items() if stashed > 0} == {"mlp/0", "mlp/1"}
            assert len(most) == 4

    run_virtual(scenario(), debug=False)


def test_every_byte_that_travels_is_in_the_trace() -> None:
    async def scenario() -> None:
        async with open_peers(2) as peers:
            tree = peers.trace()
            told = {name: peers.stage(name) for name in peers.timelines}
        for step in range(2, STEPS + 1):
            wires = [
                event for event in tree["traceEvents"]
                if event["ph"] == "X" and event["cat"].startswith("wire") and event["args"]["step"] == step
            ]  # fmt: skip
            for name, way, sender, receiver in (
                ("inputs", "wire down", 0, 1), ("activations", "wire down", 1, 2), ("gradients", "wire up", 2, 1),
            ):  # fmt: skip
                sent = bytes_of(wires, sender, "send", way)
                assert len(sent) == MICROBATCHES, name
                assert sent == bytes_of(wires, receiver, "receive", way), name
                assert all(sent.values()), name
        for part in told.values():
            for line in part.steps:
                encoded = [span for span in part.spans if span.kind == "encode" and span.step == line.step]
                assert line.bytes == sum(span.bytes for span in encoded) > 0
                assert line.raw == sum(span.raw for span in encoded)

    run_virtual(scenario(), debug=False)


def bytes_of(events: list[dict[str, Any]], process: int, kind: str, way: str) -> dict[int, int]:
    """Bytes by microbatch."""
    return {
        event["args"]["index"]: event["args"]["bytes"]
        for event in events
        if (event["pid"], event["name"], event["cat"]) == (process, kind, way)
    }
