"""What is left of a stream when its two ends stop at the same moment, over gRPC, thousands of times."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from distqat.errors import DistqatError, StaleError, UnreachableError
from distqat.ids import Endpoint
from distqat.rpc.grpc import open_transport
from distqat.rpc.transport import Caller, Method, Service, Stream, Transport
from tests.rpc.test_grpc import LOOPBACK

RACE = Method("distqat.v1.Race", "Run")

NUM_STREAMS = 3000
NUM_AT_ONCE = 8


async def race(stream: Stream, caller: Caller) -> None:
    """Send as many messages as asked for, in the sizes asked for, and end as asked for."""
    order = await stream.receive()
    assert order is not None
    ending, *sizes = order.decode().split()
    for size in sizes:
        await stream.send(b"m" * int(size))
    if ending == "fail":
        raise StaleError("the step is over")


@dataclass
class Score:
    """What became of the streams."""

    good: int = 0
    bad: list[str] = field(default_factory=list)


async def run_one(alice: Transport, to: Endpoint, dice: random.Random, score: Score) -> None:
    """One stream whose last sends and finish come at about the moment at which the handler ends."""
    ending = dice.choice(["return", "fail"])
    sizes = [dice.choice([500, 20_000, 200_000]) for _ in range(dice.randint(1, 3))]
    pause, sends, reads_first = dice.uniform(0, 0.004), dice.randint(0, 3), dice.random() < 0.3

    async def talk(stream: Stream) -> None:
        await asyncio.sleep(pause)
        try:
            for _ in range(sends):
                await stream.send(b"more")
        except (StaleError, UnreachableError):
            pass
        except DistqatError as error:
            score.bad.append(f"send: {error!r}")
        try:
            await stream.finish()
        except DistqatError as error:
            score.bad.append(f"finish: {error!r}")

    async with alice.stream(to, RACE) as stream, asyncio.TaskGroup() as group:
        await stream.send(" ".join([ending, *map(str, sizes)]).encode())
        talking = group.create_task(talk(stream))
        if not reads_first:
            await asyncio.wait({talking})
        received: list[int] = []
        end = "return"
        try:
            while (message := await stream.receive()) is not None:
                received.append(len(message))
        except StaleError as error:
            end = "fail" if error.reason == "the step is over" else repr(error)
        except DistqatError as error:
            end = repr(error)
    if (received, end) == (sizes, ending):
        score.good += 1
    else:
        score.bad.append(f"{received} of {sizes}, {end} for {ending}")


@pytest.mark.parametrize("seed", range(2))
def test_a_caller_that_stops_together_with_its_handler_loses_nothing(seed: int) -> None:
    async def main() -> Score:
        score, dice = Score(), random.Random(seed)
        async with open_transport() as alice, open_transport() as bob, bob.serve(LOOPBACK) as server:
            server.add(Service(RACE.service, streams={RACE.name: race}))

            async def some() -> None:
                for _ in range(NUM_STREAMS // 2 // NUM_AT_ONCE):
                    await run_one(alice, server.endpoint, dice, score)

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                for _ in range(NUM_AT_ONCE):
                    group.create_task(some())
        return score

    score = asyncio.run(main())  # Without the debug mode, which is too slow for so many.
    assert not score.bad, f"{len(score.bad)} of {len(score.bad) + score.good}: {score.bad[:5]}"
