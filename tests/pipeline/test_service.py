"""What an expert refuses, what it survives, and what it says of a broken route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch

from distqat.errors import RefusedError
from distqat.ids import Endpoint, PipelineId, RunId, Seat, StageIndex
from distqat.pipeline.hop import MAX_FRAME_BYTES, UPWARD, Hop
from distqat.pipeline.link import Link, open_route
from distqat.pipeline.messages import HOP, SERVICE, Commit, Fault, Message, Microbatch, Open, Opened, Settle
from distqat.pipeline.route import HopError, Limits, Route
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service, Stream
from tests.pipeline.swarm import LIMITS, ME, PIPELINE, TINY, Swarm, Tensors, open_swarm, peer, train, train_whole
from tests.support import run, until


async def fails_to_open(swarm: Swarm, route: Route | None = None, step: int = 0) -> HopError:
    with pytest.raises(HopError) as caught:
        async with swarm.open(step, route):
            pass
    return caught.value


async def still_trains(swarm: Swarm, step: int = 0) -> None:
    """The experts live on: a new route trains as if nothing had happened."""
    async with swarm.open(step) as link:
        await train(link, TINY, range(step + 1, step + 3), 2)
    whole = TINY.whole()
    train_whole(whole, TINY, range(1, step + 3), 2)
    assert torch.equal(swarm.flat(), whole.flatten())


def test_another_run_is_refused() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            with pytest.raises(HopError, match="works for run test") as caught:
                async with open_route(swarm.transport, ME, RunId("test", "0" * 32), swarm.route(), 0, LIMITS):
                    pass
            assert (caught.value.kind, caught.value.peer) == ("WrongRunError", "expert0")
            await still_trains(swarm)

    run(scenario())


def test_an_older_epoch_is_refused_and_disturbs_nobody() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm, swarm.open(0, swarm.route(5)) as link:
            error = await fails_to_open(swarm, swarm.route(4))
            assert (error.kind, error.peer) == ("StaleError", "expert0")
            assert "epoch 4 of pipeline p0 is older than epoch 5" in error.reason
            await link.train(1, TINY.batch(1), 2)

    run(scenario())


def test_the_wrong_stage_or_peer_is_refused() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 3) as swarm:
            first, second, third = swarm.seats
            swapped = Route(
                PIPELINE, 1, (first, replace(third, stage=StageIndex(1)), replace(second, stage=StageIndex(2)))
            )
            error = await fails_to_open(swarm, swapped)
            assert (error.kind, error.peer) == ("RefusedError", "expert2")
            assert "this expert holds stage 2 of 3" in error.reason
            error = await fails_to_open(swarm, Route(PIPELINE, 1, (first, second)))
            assert (error.kind, error.peer) == ("RefusedError", "expert0")
            error = await fails_to_open(swarm, Route(PIPELINE, 1, (replace(first, peer=peer(7)), second, third)))
            assert "another peer" in error.reason
            await still_trains(swarm)

    run(scenario())


def test_a_host_may_refuse() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            swarm.experts[1].refusal = RefusedError("draining")
            error = await fails_to_open(swarm)
            assert (error.kind, error.peer, error.reason) == ("RefusedError", "expert1", "draining")
            assert swarm.experts[1].closings == []
            await still_trains(swarm)
            assert [len(expert.openings) for expert in swarm.experts] == [2, 1]

    run(scenario())


def test_an_address_where_nobody_listens_is_named() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            swarm.seats[1] = replace(swarm.seats[1], endpoint=Endpoint("nowhere", 1))
            error = await fails_to_open(swarm)
            assert (error.kind, error.peer) == ("GoneError", "expert1")
            assert "stage 1 on expert1" in error.reason

    run(scenario())


BATCH = TINY.batch(1)
BAD: Mapping[str, tuple[Tensors, str, str]] = {
    "shape": ({**BATCH, "inputs": torch.zeros(4, 1, 3, 3)}, "expert0", "TensorError"),
    "dtype": ({**BATCH, "inputs": torch.zeros(4, 1, 2, 2, dtype=torch.int64)}, "expert0", "TensorError"),
    "nan": ({**BATCH, "inputs": torch.full((4, 1, 2, 2), torch.nan)}, "expert0", "TensorError"),
    "overflow": ({**BATCH, "inputs": torch.full((4, 1, 2, 2), 3e38)}, "", "TensorError"),
    "no target": ({"inputs": BATCH["inputs"]}, "expert1", "TensorError"),
    "target out of range": ({**BATCH, "labels": torch.full((4,), 3)}, "expert1", "TensorError"),
    "type that does not travel": ({**BATCH, "labels": torch.zeros(4, dtype=torch.complex64)}, "trainer", "TensorError"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_named_and_touches_nothing(name: str) -> None:
    tensors, culprit, kind = BAD[name]

    async def spoil(link: Link) -> None:
        await link.train(2, tensors, 2)

    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            async with swarm.open() as link:
                await link.train(1, TINY.batch(1), 2)
                with pytest.raises(HopError) as caught:
                    await spoil(link)
            assert caught.value.kind == kind
            assert culprit in caught.value.peer
            await still_trains(swarm, 1)

    run(scenario())


def test_a_nan_loss_is_named_and_touches_nothing() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            last = swarm.experts[1].stage
            kept = last.flatten()
            last.scatter([0], torch.full_like(kept, 3e38))
            async with swarm.open() as link:
                with pytest.raises(HopError, match="loss") as caught:
                    await link.train(1, TINY.batch(1), 2)
            assert (caught.value.kind, caught.value.peer) == ("TensorError", "expert1")
            last.scatter([0], kept)
            await still_trains(swarm)

    run(scenario())


@asynccontextmanager
async def raw_hop(swarm: Swarm, *messages: Message | bytes) -> AsyncIterator[tuple[Stream, Hop]]:
    """A hop to stage 0 whose upper end says what it likes."""
    async with swarm.transport.stream(swarm.seats[0].endpoint, HOP) as stream:
        hop = Hop(stream, UPWARD, LIMITS.max_message)
        for message in messages:
            await (stream.send(message) if isinstance(message, bytes) else hop.send(message))
        yield stream, hop


async def fault_of(hop: Hop) -> Fault:
    while (received := await hop.receive()) is not None:
        if isinstance(received[0], Fault):
            assert await hop.receive() is None
            return received[0]
    raise AssertionError("the hop ended without a fault")


@pytest.mark.parametrize("frame", [b"garbage", b"", b"\x0a\x02\xff\xff", bytes(MAX_FRAME_BYTES + 1)])
def test_a_garbage_frame_closes_its_hop_and_nothing_else(frame: bytes) -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm, swarm.open() as link:
            await link.train(1, TINY.batch(1), 2)
            async with raw_hop(swarm, frame) as (_, hop):
                fault = await fault_of(hop)
            assert (fault.peer, fault.kind) == ("expert0", "MessageError")
            await link.train(2, TINY.batch(2), 2)

    run(scenario())


def opening(swarm: Swarm) -> Open:
    route = swarm.route()
    return Open(swarm.run, route.pipeline, route.epoch, 0, route.seats)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"garbage", "not a frame"),
        (bytes(MAX_FRAME_BYTES + 1), "at most"),
        (Commit(1, 4), "not its size"),
        (Microbatch(2, 0, 2, 4, True, 2), "without 'inputs'"),
        (Opened(0), "on a hop"),
    ],
)
def test_garbage_on_an_open_route_breaks_that_route_only(message: Message | bytes, words: str) -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            async with raw_hop(swarm, opening(swarm), message) as (_, hop):
                fault = await fault_of(hop)
            assert fault.kind == "MessageError"
            assert words in fault.reason
            await still_trains(swarm)

    run(scenario())


def test_too_many_requests_to_settle_are_refused() -> None:
    async def scenario() -> None:
        @asynccontextmanager
        async def endless() -> AsyncIterator[None]:
            await asyncio.get_running_loop().create_future()
            yield

        async with open_swarm(TINY, 1) as swarm:
            swarm.experts[0].round = endless
            async with raw_hop(swarm, opening(swarm), *(Settle(serial) for serial in range(1, 5))) as (_, hop):
                assert "settle" in (await fault_of(hop)).reason

    run(scenario())


def test_a_newer_route_displaces_the_older() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm, swarm.open() as old:
            await old.train(1, TINY.batch(1), 2)
            async with swarm.open(1) as new:
                with pytest.raises(HopError, match="displaced by a newer route") as caught:
                    await old.train(2, TINY.batch(2), 2)
                assert caught.value.kind == "StaleError"
                await new.train(2, TINY.batch(2), 2)
                assert "displaced" in swarm.experts[0].closings[0]
                assert repr(swarm.services[0]) == "<PipelineService pipeline p0 epoch 2>"
        whole = TINY.whole()
        train_whole(whole, TINY, [1, 2], 2)
        assert torch.equal(swarm.flat(), whole.flatten())
        assert repr(swarm.services[0]) == "<PipelineService no route>"

    run(scenario())


def test_a_stage_that_is_opening_can_be_displaced() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm:
            silent = Service(SERVICE, streams={"Hop": say_nothing})
            swarm.servers[1].add(silent)
            async with raw_hop(swarm, opening(swarm)) as (_, hop):
                await until(lambda: swarm.experts[0].openings)
                swarm.servers[1].add(swarm.services[1].service())
                await still_trains(swarm)
                assert "displaced" in (await fault_of(hop)).reason

    run(scenario())


def test_a_stage_below_that_dies_is_named() -> None:
    async def scenario() -> None:
        network = Network(seed=1)
        async with open_swarm(TINY, 3, network=network) as swarm, swarm.open() as link:
            await link.train(1, TINY.batch(1), 2)
            await link.submit(2, TINY.batch(2), 2)
            network.crash("expert2")
            with pytest.raises(HopError, match="stage 2 on expert2") as caught:
                await link.result(2)
            assert (caught.value.kind, caught.value.peer) == ("UnreachableError", "expert2")
            await until(lambda: all(expert.closings for expert in swarm.experts[:2]))
            assert "stage 2 on expert2" in swarm.experts[0].closings[0]

    run(scenario())


def test_a_role_that_is_dropped_closes_its_route() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm, swarm.open() as link:
            await link.train(1, TINY.batch(1), 2)
            await swarm.servers[1].remove(SERVICE)
            with pytest.raises(HopError) as caught:
                await link.train(2, TINY.batch(2), 2)
            assert caught.value.peer == "expert1"
            assert len(swarm.experts[1].closings) == 1

    run(scenario())


PATIENCE = 2.0
"""Seconds of the last stage; the one before it waits for half a second more, and a busy machine must not take that."""


async def say_nothing(stream: Stream, caller: Caller) -> None:
    """A peer that takes the hop and freezes."""
    await asyncio.get_running_loop().create_future()


async def open_and_freeze(stream: Stream, caller: Caller) -> None:
    """A peer that opens its hop and freezes."""
    await Hop(stream, {}, 1 << 20).send(Opened(0))
    await asyncio.get_running_loop().create_future()


async def freeze(limits: Limits, place: int, handler: object) -> HopError:
    async with open_swarm(TINY, 2, limits) as swarm:
        swarm.servers[place].add(Service(SERVICE, streams={"Hop": handler}))  # type: ignore[dict-item]
        with pytest.raises(HopError) as caught:
            await still_trains(swarm)
        return caught.value


@pytest.mark.parametrize("place", [0, 1])
def test_a_peer_that_freezes_is_named_after_the_stall(place: int) -> None:
    error = run(freeze(replace(LIMITS, stall=PATIENCE), place, open_and_freeze))
    assert (error.kind, error.peer) == ("DeadlineError", f"expert{place}")
    assert "no progress" in error.reason


@pytest.mark.parametrize("place", [0, 1])
def test_a_peer_that_does_not_open_is_named(place: int) -> None:
    error = run(freeze(replace(LIMITS, open=PATIENCE), place, say_nothing))
    assert (error.kind, error.peer) == ("DeadlineError", f"expert{place}")
    assert "did not open" in error.reason


def test_a_caller_that_says_nothing_is_sent_away() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 1, replace(LIMITS, open=0.1)) as swarm, raw_hop(swarm) as (_, hop):
            fault = await fault_of(hop)
            assert "said nothing" in fault.reason

    run(scenario())


def test_seats_of_a_route_are_those_of_the_opening() -> None:
    async def scenario() -> None:
        async with open_swarm(TINY, 2) as swarm, swarm.open(0, swarm.route(3, PipelineId("p9"))):
            first = swarm.services[0].opening
            second = swarm.services[1].opening
            assert first is not None
            assert second is not None
            assert (first.pipeline, first.epoch, len(first.seats)) == ("p9", 3, 2)
            assert second.seats == (Seat(peer(1), swarm.seats[1].endpoint, StageIndex(1)),)

    run(scenario())
