"""The link of the tests does what it says: delay, rate, order, pressure, cuts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from distqat.ids import Endpoint
from tests.proxy import Cut, Direction, Proxy, Shape, open_proxies, open_proxy
from tests.rpc.tcp import tcp_server
from tests.support import run, until

MESSAGE = bytes(range(256)) * 40


class Far:
    """The side that listens: notes what comes, and says what it is told to."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ends: list[str] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.writers: list[asyncio.StreamWriter] = []

    async def behave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                await self.reading.wait()
                data = await reader.read(1 << 16)
                if not data:
                    break
                self.got += data
            self.ends.append("end")
        except ConnectionResetError:
            self.ends.append("reset")


@asynccontextmanager
async def open_far(shape: Shape = Shape()) -> AsyncIterator[tuple[Proxy, Far]]:  # noqa: B008
    far = Far()
    async with tcp_server(far.behave) as endpoint, open_proxy(endpoint, shape) as proxy:
        yield proxy, far


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(proxy.endpoint.host, proxy.endpoint.port)


def test_bytes_pass_both_ways_and_are_counted() -> None:
    async def scenario() -> None:
        async with open_far() as (proxy, far):
            reader, writer = await connect(proxy)
            writer.write(MESSAGE)
            await until(lambda: bytes(far.got) == MESSAGE)
            far.writers[0].write(b"answer")
            assert await reader.readexactly(6) == b"answer"
            found = proxy.statistics()
            assert (found.down, found.up, found.connections, found.accepted, found.cuts) == (len(MESSAGE), 6, 1, 1, 0)
            # One side may finish while the other still sends.
            writer.write_eof()
            await until(lambda: far.ends == ["end"])
            far.writers[0].close()
            assert await reader.read() == b""
            await until(lambda: not proxy.statistics().connections)
            writer.close()

    run(scenario())


@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_delay_is_one_way_and_does_not_limit_the_rate(direction: Direction) -> None:
    size, delay = 8 << 20, 0.1

    async def scenario() -> None:
        async with open_far(Shape(delay=delay)) as (proxy, far):
            loop = asyncio.get_running_loop()
            reader, writer = await connect(proxy)
            await until(lambda: far.writers)
            began = loop.time()
            if direction == "down":
                writer.write(bytes(size))
                await until(lambda: far.got)
                first = loop.time() - began
                await until(lambda: len(far.got) == size)
            else:
                far.writers[0].write(bytes(size))
                await reader.readexactly(1)
                first = loop.time() - began
                await reader.readexactly(size - 1)
            took = loop.time() - began
            assert first >= delay
            # A window of one piece each round trip would take 128 times the delay.
            assert took < 12 * delay
            writer.close()

    run(scenario())


def test_nothing_overtakes_and_nothing_is_lost() -> None:
    async def scenario() -> None:
        async with open_far(Shape(delay=0.02, rate=4e6)) as (proxy, far):
            _, writer = await connect(proxy)
            sent = b"".join(index.to_bytes(4, "big") for index in range(200_000))
            for begin in range(0, len(sent), 30_011):
                writer.write(sent[begin : begin + 30_011])
                await writer.drain()
            await until(lambda: len(far.got) == len(sent))
            assert hashlib.sha256(far.got).digest() == hashlib.sha256(sent).digest()
            writer.close()

    run(scenario())


def test_the_rate_is_what_was_asked_for_all_connections_together() -> None:
    rate, size = 1e6, 150_000

    async def scenario() -> None:
        async with open_far(Shape(rate=rate)) as (proxy, far):
            loop = asyncio.get_running_loop()
            writers = [(await connect(proxy))[1] for _ in range(2)]
            began = loop.time()
            for writer in writers:
                writer.write(bytes(size))
            await until(lambda: len(far.got) == 2 * size)
            took = loop.time() - began
            assert 0.9 * 2 * size / rate - 0.02 < took < 3 * 2 * size / rate
            for writer in writers:
                writer.close()

    run(scenario())


def test_a_receiver_that_does_not_read_is_felt_by_the_sender() -> None:
    async def scenario() -> None:
        async with open_far(Shape(delay=0.01, rate=50e6)) as (proxy, far):
            far.reading.clear()
            _, writer = await connect(proxy)
            await until(lambda: far.writers)
            far.writers[0].transport.pause_reading()  # type: ignore[attr-defined]  # Transports of sockets can.
            writer.write(bytes(32 << 20))
            waiting = asyncio.ensure_future(writer.drain())
            delivered = -1
            while delivered != proxy.statistics().down:
                delivered = proxy.statistics().down
                await asyncio.sleep(0.1)
            assert not waiting.done()
            # What the kernel holds for the receiver, and a little; by no means all.
            assert delivered < 16 << 20
            far.writers[0].transport.resume_reading()  # type: ignore[attr-defined]
            far.reading.set()
            await waiting
            await until(lambda: len(far.got) == 32 << 20)
            writer.close()

    run(scenario())


@pytest.mark.parametrize("at", [1, 5000, len(MESSAGE)])
def test_a_reset_comes_at_the_byte_and_passes(at: int) -> None:
    async def scenario() -> None:
        async with open_far() as (proxy, far):
            done = proxy.cut_at(at, "down")
            reader, writer = await connect(proxy)
            writer.write(MESSAGE)
            await done.wait()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            await until(lambda: far.ends == ["reset"])
            assert bytes(far.got) == MESSAGE[:at]
            assert proxy.statistics().down == at
            writer.close()
            # Once: whoever connects again finds the link as good as before.
            far.got.clear()
            _, writer = await connect(proxy)
            writer.write(MESSAGE)
            await until(lambda: bytes(far.got) == MESSAGE)
            assert proxy.statistics().cuts == 1
            writer.close()

    run(scenario())


def test_a_cut_can_be_counted_in_answers() -> None:
    async def scenario() -> None:
        async with open_far() as (proxy, far):
            reader, writer = await connect(proxy)
            done = proxy.cut_at(100, "up")
            writer.write(MESSAGE)
            await until(lambda: bytes(far.got) == MESSAGE)
            assert not done.is_set()
            far.writers[0].write(MESSAGE)
            await done.wait()
            assert await reader.readexactly(100) == MESSAGE[:100]
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()

    run(scenario())


def test_a_link_that_refuses_does_so_until_it_is_healed() -> None:
    async def scenario() -> None:
        async with open_far() as (proxy, far):
            _, first = await connect(proxy)
            await until(lambda: far.writers)
            proxy.cut(Cut.REFUSE)
            await until(lambda: far.ends == ["reset"])
            reader, second = await connect(proxy)
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            assert len(far.writers) == 1
            proxy.heal()
            _, third = await connect(proxy)
            third.write(b"again")
            await until(lambda: bytes(far.got) == b"again")
            for writer in (first, second, third):
                writer.close()

    run(scenario())


def test_a_silent_link_goes_on_where_it_was() -> None:
    async def scenario() -> None:
        async with open_far() as (proxy, far):
            reader, writer = await connect(proxy)
            done = proxy.cut_at(3000, "down", Cut.SILENCE)
            writer.write(MESSAGE)
            await done.wait()
            far.writers[0].write(b"answer")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.readexactly(6)
            await until(lambda: bytes(far.got) == MESSAGE[:3000])
            assert not far.ends
            proxy.heal()
            await until(lambda: bytes(far.got) == MESSAGE)
            assert await reader.readexactly(6) == b"answer"
            writer.close()

    run(scenario())


def test_who_listens_nowhere_resets() -> None:
    async def scenario() -> None:
        async with tcp_server(Far().behave) as endpoint:
            pass
        async with open_proxies([endpoint, Endpoint("127.0.0.1", 1)]) as proxies:
            for proxy in proxies:
                reader, writer = await connect(proxy)
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)
                writer.close()

    run(scenario())
