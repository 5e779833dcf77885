"""What every transport promises of the end of a handler, over gRPC and over the network in memory."""

from __future__ import annotations

import asyncio

import pytest

from distqat.errors import DistqatError, RpcError, StaleError, UnreachableError
from distqat.rpc.transport import Method, Service, Stream
from tests.contract.worlds import (
    LAST_WORDS,
    LAST_WORDS_SIZE,
    NAME,
    WORLDS,
    Pair,
    World,
    chat,
    soon,
)

pytestmark = [
    pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name),
    pytest.mark.parametrize("order", [b"", b"StaleError:the step is over"], ids=["success", "error"]),
]

SOON = 2.5
"""Seconds within which a sender must have learned of the end; longer than a stream lingers."""


async def check_last_words(stream: Stream, order: bytes) -> None:
    """All three messages arrive, and then the end stays what it was."""
    for letter in (b"A", b"B", b"C"):
        assert await stream.receive() == letter * LAST_WORDS_SIZE
    for _ in range(2):
        await check_end(stream, order)


async def check_end(stream: Stream, order: bytes) -> None:
    if order:
        with pytest.raises(StaleError, match=r"^the step is over$"):
            await stream.receive()
    else:
        assert await stream.receive() is None


async def send_until_it_fails(stream: Stream, message: bytes) -> DistqatError:
    async with asyncio.timeout(SOON):
        while True:
            try:
                await stream.send(message)
            except DistqatError as error:
                return error
            await asyncio.sleep(0.001)


def check_refusal(error: DistqatError, order: bytes) -> None:
    """What a sender may be told after the end."""
    assert type(error) in ((StaleError, UnreachableError) if order else (UnreachableError,))


def test_last_words_arrive_before_the_end(world: World, order: bytes) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, LAST_WORDS) as stream:
            await stream.send(order)
            await check_last_words(stream, order)

    world.run(main())


@pytest.mark.parametrize("rest", [0.0, 0.1])
def test_last_words_arrive_though_the_caller_goes_on_sending_and_finishes(
    world: World, order: bytes, rest: float
) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, LAST_WORDS) as stream:
            await stream.send(order)
            await soon(pair.trial.ended)
            await asyncio.sleep(rest)  # The end of the handler may be under way, or have arrived.
            try:
                for _ in range(3):
                    await stream.send(b"more")
            except DistqatError as error:
                check_refusal(error, order)
            await stream.finish()
            await check_last_words(stream, order)

    world.run(main())


def test_finishing_after_the_end_is_harmless(world: World, order: bytes) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, LAST_WORDS) as stream:
            await stream.send(order)
            await check_last_words(stream, order)
            await stream.finish()
            await stream.finish()
            await check_end(stream, order)
            with pytest.raises(RpcError):
                await stream.send(b"more")

    world.run(main())


def test_finishing_is_harmless_when_the_other_side_is_gone(world: World, order: bytes) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, LAST_WORDS) as stream:
            await stream.send(order)
            await check_last_words(stream, order)
            await asyncio.sleep(1.5)  # Nothing lingers so long.
            await stream.finish()
            await check_end(stream, order)

    world.run(main())


def test_sending_after_the_end_was_received_fails_at_once(world: World, order: bytes) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, LAST_WORDS) as stream:
            await stream.send(order)
            await check_last_words(stream, order)
            with pytest.raises(StaleError if order else UnreachableError, match="is over" if order else "ended"):
                await stream.send(b"more")

    world.run(main())


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_one_who_only_sends_soon_learns_of_the_end(world: World, order: bytes, size: int) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, LAST_WORDS) as stream:
            await stream.send(order)
            await soon(pair.trial.ended)
            check_refusal(await send_until_it_fails(stream, bytes(size)), order)

    world.run(main())


async def add_blocked(pair: Pair, blocked: asyncio.Event) -> Method:
    """A handler that ends while a send of its own waits for room; fails if it is asked to."""

    async def end_while_sending(stream: Stream, caller: object) -> None:
        first = await stream.receive()

        async def fill() -> None:
            while True:
                await stream.send(b"x" * (1 << 20))

        filling = asyncio.create_task(fill())
        await asyncio.wait({filling}, timeout=0.3)
        filling.cancel()
        await asyncio.wait({filling})
        blocked.set()
        if first:
            raise StaleError("the step is over")

    pair.server.add(Service("distqat.v1.Blocked", streams={"Fill": end_while_sending}))
    return Method("distqat.v1.Blocked", "Fill")


def test_the_end_is_told_though_a_send_of_the_handler_was_cut_short(world: World, order: bytes) -> None:
    async def main() -> None:
        blocked = asyncio.Event()
        async with world.pair() as pair, chat(pair, await add_blocked(pair, blocked)) as stream:
            await stream.send(order)
            await soon(blocked)
            try:
                await stream.send(b"more")
                await stream.finish()
            except DistqatError as error:
                check_refusal(error, order)
            last: bytes | None = b""
            try:
                while last is not None:
                    last = await stream.receive()
            except StaleError:
                assert order
            else:
                assert not order

    world.run(main())


def test_last_words_arrive_though_the_service_goes(world: World, order: bytes) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, LAST_WORDS) as stream:
            await stream.send(order)
            await soon(pair.trial.ended)
            await asyncio.sleep(0)
            await pair.server.remove(NAME)
            await stream.finish()
            await check_last_words(stream, order)

    world.run(main())


def test_a_server_that_closes_does_not_wait_for_a_caller_that_stays(world: World, order: bytes) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with world.transports() as (alice, bob), asyncio.TaskGroup() as group:
            leave = asyncio.Event()
            async with world.serving(bob) as (server, trial):

                async def stay() -> None:
                    async with alice.stream(server.endpoint, LAST_WORDS) as stream:
                        await stream.send(order)
                        await leave.wait()

                group.create_task(stay())
                await soon(trial.ended)
                began = loop.time()
            assert loop.time() - began < 0.6
            leave.set()

    world.run(main())
