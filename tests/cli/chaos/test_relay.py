"""A relay passes everything on, and cuts both ways of a daemon: what comes to it and what it dials itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from distqat.cli.chaos import relay
from distqat.cli.chaos.owners import End, owners
from distqat.cli.chaos.relay import Pair, Relays, open_relays
from distqat.ids import Endpoint
from tests.rpc.tcp import tcp_server
from tests.support import run, until

HERE = "here"
"""The daemon that this process plays; the one behind the relay is `there`."""

LARGE = bytes(range(256)) * (1 << 14)

DIAL = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as line:
    print("connected", flush=True)
    sys.stdin.readline()
    try:
        line.sendall(b"x")
        print("end" if not line.recv(1) else "echo", flush=True)
    except ConnectionError:
        print("reset", flush=True)
"""
"""Another process that dials, and says what becomes of its connection."""


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def open_there(pid: int) -> AsyncIterator[tuple[Relays, Endpoint]]:
    """A daemon behind a relay that gives everything back."""
    async with open_relays() as relays:
        listen, announce = relays.reserve("there")
        relays.reserve(HERE)
        async with tcp_server(echo, listen):
            await relays.open("there", pid)
            yield relays, announce


class Line:
    """A connection of this process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> bytes:
        """Say something, and wait until it has come back."""
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def is_broken(self) -> bool:
        """Wait until the other side is gone."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def dial(to: Endpoint) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection(to.host, to.port)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def until_refused(to: Endpoint) -> None:
    """A listener that is closed goes away at the loop's next turn."""
    while True:
        try:
            async with dial(to) as line:
                await line.ask(b"x")
        except (ConnectionError, asyncio.IncompleteReadError):
            return


def test_bytes_pass_both_ways_and_so_does_the_end() -> None:
    async def scenario() -> None:
        async with open_there(0) as (relays, announce):
            async with dial(announce) as line:
                assert await line.ask(b"hello") == b"hello"
                assert await line.ask(LARGE) == LARGE
            await until(lambda: "0 connections" in repr(relays))

    run(scenario())


def test_a_daemon_that_is_dead_refuses_as_without_a_relay() -> None:
    async def scenario() -> None:
        async with open_there(0) as (relays, announce):
            relays.close("there")
            await until_refused(announce)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(announce.host, announce.port)
            await relays.open("there", 0)
            async with dial(announce) as line:
                assert await line.ask(b"back") == b"back"

    run(scenario())


def test_a_refusing_cut_resets_and_refuses_until_it_is_healed() -> None:
    async def scenario() -> None:
        async with open_there(0) as (relays, announce):
            async with dial(announce) as line:
                await line.ask(b"hello")
                assert relays.cut("there", is_silent=False) == 1
                assert await line.is_broken()
            await until_refused(announce)
            await relays.heal("there")
            async with dial(announce) as line:
                assert await line.ask(b"back") == b"back"
            assert not relays.cut_off

    run(scenario())


def test_a_silent_cut_holds_everything_back_until_it_is_healed() -> None:
    async def scenario() -> None:
        async with open_there(0) as (relays, announce), dial(announce) as line:
            await line.ask(b"hello")
            assert relays.cut("there", is_silent=True) == 1
            async with dial(announce) as late:
                answers = asyncio.gather(line.ask(b"held"), late.ask(b"late"))
                # A round trip through another relay is long enough for what would pass.
                listen, other = relays.reserve("other")
                async with tcp_server(echo, listen):
                    await relays.open("other", 0)
                    async with dial(other) as beside:
                        assert await beside.ask(b"x") == b"x"
                assert not answers.done()
                await relays.heal("there")
                assert list(await answers) == [b"held", b"late"]

    run(scenario())


@contextmanager
def dialler(to: Endpoint) -> Iterator[subprocess.Popen[str]]:
    """Another process; it dials at once."""
    words = [sys.executable, "-c", DIAL, to.host, str(to.port)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_what_a_cut_daemon_has_dialled_is_cut_too_and_others_go_on() -> None:
    async def scenario() -> None:
        async with open_there(0) as (relays, announce):
            with dialler(announce) as cut, dialler(announce) as other:
                # Known before their connections are taken: the loop runs only now.
                await relays.open(HERE, cut.pid)
                assert [await line_of(cut), await line_of(other)] == ["connected", "connected"]
                await until(lambda: "2 connections" in repr(relays))
                assert relays.cut(HERE, is_silent=False) == 1
                go_on(cut)
                go_on(other)
                assert await line_of(cut) in ("reset", "end")
                assert await line_of(other) == "echo"

    run(scenario())


def test_whose_connections_are_is_found_out_for_all_of_them_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_there(0) as (_, announce), dial(announce) as one, dial(announce) as other:
            await one.ask(b"x")
            await other.ask(b"x")
            ends = {(line.writer.get_extra_info("sockname")[1], announce.port) for line in (one, other)}
            me = os.getpid()
            assert owners(ends, [1, me]) == dict.fromkeys(ends, me)
            assert not owners(ends, [])
            assert not owners({(port, to + 1) for port, to in ends}, [me])
            await asyncio.to_thread(shutil.copyfile, "/proc/net/tcp", tmp_path / "tcp")
            assert owners(ends, [me], tmp_path) == dict.fromkeys(ends, me), "a kernel without IPv6"

    run(scenario())


def test_who_connects_while_it_is_found_out_who_others_are_is_found_out_with_all_of_those(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    is_dialled = threading.Event()

    def slow(ends: Collection[End], pids: Iterable[int]) -> Mapping[End, int]:
        asked.append(len(ends))
        assert is_dialled.wait(60)
        return owners(ends, pids)

    monkeypatch.setattr(relay, "owners", slow)

    async def scenario() -> None:
        async with open_there(os.getpid()) as (relays, announce), AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(dial(announce)) for _ in range(30)]
            is_dialled.set()
            await asyncio.gather(*(line.ask(b"x") for line in lines))
            assert "30 connections" in repr(relays)

    run(scenario())
    assert sum(asked) == 30
    assert len(asked) <= 10


def test_who_has_left_before_it_was_accepted_is_no_connection() -> None:
    class Left(asyncio.Transport):
        """What the event loop hands over when the other end is gone by then."""

        is_aborted = False

        def get_extra_info(self, name: str, default: object = None) -> object:
            return default

        def pause_reading(self) -> None:
            pass

        def abort(self) -> None:
            self.is_aborted = True

    async def scenario() -> None:
        async with open_there(os.getpid()) as (relays, _):
            transport, pair = Left(), Pair(relays, "there")
            pair.near.connection_made(transport)
            assert transport.is_aborted

    run(scenario())
