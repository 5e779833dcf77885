"""Siblings that are processes (`sibling.py`), and the directory that each of them sees: who was heard of lately."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from bench.machines import HERE, Machine
from distqat.averaging import rendezvous
from distqat.averaging.group import RoundRef
from distqat.averaging.spans import Shape
from distqat.ids import Endpoint, PeerId
from tests.averaging.swarm import RUN, STAGE
from tests.namespaces import read_line

LEASE = 2.0
"""Seconds of silence after which the directory drops a sibling."""

SYNC = {"warmup_steps": 0, "inner_steps": 10, "max_wait": 3.0, "codec": "int8"}

SHAPE = Shape(400_000, 401_000)
"""Of their one fragment."""

READY = "ready"
"""What the process that makes siblings says first."""

Facts = dict[str, Any]


@dataclass(eq=False)
class Member:
    """One of them, as the test knows it."""

    name: str
    pid: int
    host: str
    port: int
    writer: asyncio.StreamWriter
    facts: Facts = field(default_factory=dict)
    """What it said last: round, digest, ready, doing."""
    heard: float = 0.0
    results: asyncio.Queue[Facts] = field(default_factory=asyncio.Queue)
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    """It has hit its trap."""
    told: list[list[Any]] = field(default_factory=list)
    """The directory that it was last shown."""

    def send(self, **order: Any) -> None:
        """Tell it to do something."""
        self.writer.write((json.dumps(order) + "\n").encode())

    def signal(self, which: signal.Signals) -> None:
        """Kill it, stop it, let it go on."""
        os.kill(self.pid, which)


class Family:
    """All of them. `history` has the digests of every round that any of them ever committed."""

    def __init__(self, maker: subprocess.Popen[str], path: Path, sync: Mapping[str, Any], shape: Shape) -> None:
        self.members: dict[str, Member] = {}
        self.history: dict[int, set[str]] = defaultdict(set)
        self.detours: dict[tuple[str, str], Endpoint] = {}  # Where the first finds the second, if not at its own.
        self._settings = {"sync": dict(sync), "shape": astuple(shape)}
        self._maker = maker
        self._path = path
        self._changed = asyncio.Event()
        self._open: set[int] = set()  # Process ids of those that are connected.

    async def start(self, *names: str, machines: dict[str, Machine] | None = None) -> list[Member]:
        """Make siblings of these names, in place of those that died; they hold nothing yet."""
        for name in names:
            self.members.pop(name, None)
            machine = (machines or {}).get(name, HERE)
            order = {"name": name, "host": machine.host, "namespace": machine.namespace, "path": str(self._path)}
            assert self._maker.stdin is not None
            self._maker.stdin.write(json.dumps({**order, **self._settings}) + "\n")
            self._maker.stdin.flush()
        await self.until(lambda: all(name in self.members for name in names))
        return [self.members[name] for name in names]

    async def found(self, *names: str, machines: dict[str, Machine] | None = None) -> list[Member]:
        """Siblings that have founded the run, each seeing all others."""
        members = await self.start(*names, machines=machines)
        for member in members:
            member.send(do="found")
        for member in members:
            await self.result(member)
        await self.settled(0, *members)
        return members

    async def settled(self, number: int, *members: Member) -> None:
        """All of these have committed so many rounds, and see it of each other."""

        names = {member.name for member in members}
        for member in members:
            await self.sees(member, number, *names - {member.name})

    async def sees(self, member: Member, number: int, *names: str) -> None:
        """It sees that these have committed so many rounds."""
        await self.until(lambda: set(names) <= {line[0] for line in member.told if line[3] == number and line[5]})

    async def round(self, *members: Member, value: float = 0.5) -> list[Facts]:
        """All of these synchronise at once; what they came to."""
        self.order(*members, value=value)
        return [await self.result(member) for member in members]

    def order(self, *members: Member, value: float = 0.5) -> None:
        """Let them begin a round."""
        for index, member in enumerate(members):
            member.send(do="round", value=value + index, samples=index + 1)

    async def result(self, member: Member, seconds: float = 40.0) -> Facts:
        """What its present order came to."""
        async with asyncio.timeout(seconds):
            return await member.results.get()

    async def until(self, condition: Any, seconds: float = 20.0) -> None:
        """Wait until it is so."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self._changed.wait()

    def leader_first(self, number: int) -> list[Member]:
        """In the order in which they are asked to lead that round."""
        peers = [PeerId(name) for name in self.members]
        return [self.members[peer] for peer in rendezvous.order(RoundRef(RUN, STAGE, number), peers)]

    def check(self) -> None:
        """No round has two results."""
        assert all(len(digests) == 1 for digests in self.history.values()), dict(self.history)

    def _directory(self, member: Member) -> list[list[Any]]:
        now = asyncio.get_running_loop().time()
        return [
            [other.name, *self._way(member, other), *(other.facts[fact] for fact in ("round", "digest", "ready"))]
            for other in self.members.values()
            if other is not member and "ready" in other.facts and now - other.heard < LEASE
        ]

    def _way(self, member: Member, other: Member) -> tuple[str, int]:
        endpoint = self.detours.get((member.name, other.name), Endpoint(other.host, other.port))
        return endpoint.host, endpoint.port

    async def listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One sibling, from its hello to its death."""
        member: Member | None = None
        with suppress(ConnectionError):
            while line := await reader.readline():
                member = self._hear(json.loads(line), member, writer)
                self._changed.set()
        if member is not None:
            self._open.discard(member.pid)
            self._changed.set()
        writer.close()

    async def close(self) -> None:
        """Kill all that live."""
        for pid in self._open:
            os.kill(pid, signal.SIGKILL)
        await self.until(lambda: not self._open)

    def _hear(self, said: Facts, member: Member | None, writer: asyncio.StreamWriter) -> Member:
        if member is None:
            member = Member(said["hello"], said["pid"], said["host"], said["port"], writer)
            self.members[member.name] = member
            self._open.add(member.pid)
        member.heard = asyncio.get_running_loop().time()
        if said.get("digest"):
            self.history[said["round"]].add(said["digest"])
        if "done" in said:
            member.results.put_nowait(said)
        if "struck" in said:
            member.struck.set()
        if "doing" in said:
            member.facts = said
        return member

    async def spread(self) -> None:
        """Show every sibling the directory whenever it has changed."""
        while True:
            for member in list(self.members.values()):
                directory = self._directory(member)
                if directory != member.told and not member.writer.is_closing():
                    member.told = directory
                    member.send(siblings=directory)
            await asyncio.sleep(0.05)


@contextmanager
def open_maker() -> Iterator[subprocess.Popen[str]]:
    """The process that makes siblings; it has imported everything."""
    command, pipe = [sys.executable, "-m", "tests.e2e.sibling"], subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as maker:
        try:
            assert read_line(maker) == READY
            yield maker
        finally:
            maker.kill()


@asynccontextmanager
async def open_family(
    maker: subprocess.Popen[str], folder: Path, sync: Mapping[str, Any] = SYNC, shape: Shape = SHAPE
) -> AsyncIterator[Family]:
    """A family without members; all are dead at the end."""
    path = folder / "family"
    family = Family(maker, path, sync, shape)
    async with await asyncio.start_unix_server(family.listen, path), asyncio.TaskGroup() as group:
        spreading = group.create_task(family.spread())
        try:
            yield family
        finally:
            spreading.cancel()
            await family.close()
