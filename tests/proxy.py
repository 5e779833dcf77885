"""A slow and unreliable link: a TCP proxy on loopback that delays, limits the rate, cuts and heals.

    sender ==socket==> pump: token bucket > queue, each piece due a delay later > deliver ==socket==> receiver

Both queues and socket buffers are bounded, so a receiver or a rate that cannot keep up is felt by the sender.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from distqat.ids import Endpoint
from distqat.rpc.handlers import task_group

Direction = Literal["down", "up"]
"""From whoever connects to whoever listens, and back."""

PIECE_BYTES = 64 << 10
"""Read and delivered at once, at most; a slow link takes smaller pieces."""

PIECE_SECONDS = 0.01
"""Of a limited rate: the longest time that one piece takes."""

QUEUE_BYTES = 64 << 20
"""Under way in one direction of a connection without a limit of the rate, at most."""

SLOW_BUFFER_BYTES = 32 << 10
"""Of a socket at the proxy, when the rate is limited: what the kernel holds is not paced."""


@dataclass(frozen=True)
class Shape:
    """What a link is like, each direction for itself."""

    delay: float = 0.0
    """Seconds one way; does not limit the rate."""
    rate: float = 0.0
    """Bytes per second, all connections together; 0: as fast as the machine."""

    @property
    def piece(self) -> int:
        """Bytes that are moved at once, at most."""
        return max(256, min(PIECE_BYTES, int(self.rate * PIECE_SECONDS))) if self.rate else PIECE_BYTES

    @property
    def queue(self) -> int:
        """Bytes that may be under way in one direction of a connection."""
        return int(self.rate * self.delay) + 2 * self.piece if self.rate else QUEUE_BYTES


class Cut(enum.Enum):
    """How a link fails."""

    RESET = "reset"
    """What is connected is reset, and may connect again."""
    REFUSE = "refuse"
    """What is connected is reset, and so is whoever connects, until the link is healed."""
    SILENCE = "silence"
    """Connections stay, and not a byte passes until the link is healed; then they go on where they were."""


@dataclass(frozen=True)
class Statistics:
    """How things stand."""

    connections: int
    """That are open."""
    accepted: int
    """Since the proxy listens."""
    down: int
    up: int
    """Bytes that were delivered."""
    cuts: int
    last_cut: float
    """When the last cut came, on the loop's clock; 0 before the first."""


class Bucket:
    """Tokens for bytes; who takes more than there are waits, in turn. Holds no more than one piece when idle."""

    def __init__(self, shape: Shape) -> None:
        self._rate = shape.rate
        self._burst = shape.piece / shape.rate if shape.rate else 0.0  # Seconds.
        self._free = 0.0  # When the last byte that was taken has left.

    async def take(self, num_bytes: int) -> None:
        """Wait until that many bytes have left."""
        if self._rate:
            now = asyncio.get_running_loop().time()
            self._free = max(self._free, now - self._burst) + num_bytes / self._rate
            if self._free > now:
                await asyncio.sleep(self._free - now)


class _Pair:
    """One connection: the socket of whoever has connected, and ours to whoever listens."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near
        self.far = far
        self.is_broken = False  # It is to be reset; not a byte more passes.

    @property
    def directions(self) -> Iterable[tuple[socket.socket, socket.socket, Direction]]:
        """Where bytes come from, where they go, and which way that is."""
        return ((self.near, self.far, "down"), (self.far, self.near, "up"))

    def break_off(self) -> None:
        """Let closing send RST instead of FIN, to both sides."""
        self.is_broken = True
        for end in (self.near, self.far):
            _reset_on_close(end)

    def check(self) -> None:
        """Raise ConnectionResetError if it is broken."""
        if self.is_broken:
            raise ConnectionResetError

    def close(self) -> None:
        """Let go of both."""
        self.near.close()
        self.far.close()


@dataclass
class _Planned:
    """A cut that comes by itself."""

    cut: Cut
    direction: Direction
    at: int
    """Bytes delivered in that direction, since the proxy listens."""
    is_done: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """One link to `to`, for any number of connections. Connect to `endpoint`; made by `open_proxy`."""

    def __init__(self, to: Endpoint, shape: Shape, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        self.to = to
        self.shape = shape
        self.endpoint = Endpoint(*listener.getsockname())
        self._listener = listener
        self._group = group  # Owns the tasks of all connections.
        self._buckets: dict[Direction, Bucket] = {"down": Bucket(shape), "up": Bucket(shape)}
        self._pairs: dict[_Pair, asyncio.Task[None]] = {}
        self._open = asyncio.Event()  # Cleared while bytes are held back.
        self._open.set()
        self._is_refusing = False
        self._planned: list[_Planned] = []
        self._counts: Counter[str] = Counter()  # Of the statistics.
        self._last_cut = 0.0

    def __repr__(self) -> str:
        state = "silent" if not self._open.is_set() else "refusing" if self._is_refusing else "open"
        return f"<Proxy {self.endpoint} to {self.to} {state}, {len(self._pairs)} connections>"

    def statistics(self) -> Statistics:
        """A snapshot."""
        counts = self._counts
        return Statistics(
            len(self._pairs), counts["accepted"], counts["down"], counts["up"], counts["cuts"], self._last_cut
        )

    def cut(self, how: Cut = Cut.RESET) -> None:
        """Fail now."""
        self._counts["cuts"] += 1
        self._last_cut = asyncio.get_running_loop().time()
        if how is Cut.SILENCE:
            self._open.clear()
            return
        self._is_refusing = how is Cut.REFUSE
        for pair, task in self._pairs.items():
            # Closed by its own task: the loop must have let go of the sockets before.
            pair.break_off()
            task.cancel()

    def cut_at(self, num_bytes: int, direction: Direction, how: Cut = Cut.RESET) -> asyncio.Event:
        """Fail when exactly that many bytes, counted from now, have been delivered that way; the event is set then."""
        planned = _Planned(how, direction, self._counts[direction] + num_bytes)
        self._planned.append(planned)
        return planned.is_done

    def heal(self) -> None:
        """Be a good link again; cuts that are planned stay planned."""
        self._is_refusing = False
        self._open.set()

    async def serve(self) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            self._counts["accepted"] += 1
            if self._is_refusing:
                _reset_on_close(near)
                near.close()
                continue
            self._group.create_task(self._connect(near))

    async def _connect(self, near: socket.socket) -> None:
        pair = _Pair(near, _socket(self.shape))
        task = asyncio.current_task()
        assert task is not None
        self._pairs[pair] = task
        try:
            near.setblocking(False)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(pair.far, (self.to.host, self.to.port))
            await self._carry(pair)
        except* OSError:
            pair.break_off()  # One side has broken off, so the other one learns of it the same way.
        finally:
            del self._pairs[pair]
            pair.close()

    async def _carry(self, pair: _Pair) -> None:
        async with asyncio.TaskGroup() as group:
            for source, target, direction in pair.directions:
                line = _Line(self.shape)
                group.create_task(self._pump(source, line, direction))
                group.create_task(self._deliver(pair, line, target, direction))

    async def _pump(self, source: socket.socket, line: _Line, direction: Direction) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, self.shape.piece):
            await self._buckets[direction].take(len(data))
            await line.put(data)
        await line.put(b"")

    async def _deliver(self, pair: _Pair, line: _Line, target: socket.socket, direction: Direction) -> None:
        loop = asyncio.get_running_loop()
        while data := await line.get():
            rest = memoryview(data)
            while len(rest):
                await self._open.wait()
                pair.check()
                part = rest[: self._count(len(rest), direction)]
                await loop.sock_sendall(target, part)
                self._strike(direction)
                rest = rest[len(part) :]
        await self._open.wait()
        target.shutdown(socket.SHUT_WR)

    def _count(self, num_bytes: int, direction: Direction) -> int:
        """How many of those bytes may be delivered before the next cut; they count as delivered."""
        left = [planned.at - self._counts[direction] for planned in self._planned if planned.direction == direction]
        allowed = min([num_bytes, *left])
        self._counts[direction] += allowed
        return allowed

    def _strike(self, direction: Direction) -> None:
        """Carry out the cuts that are due."""
        for planned in [p for p in self._planned if p.direction == direction and p.at <= self._counts[direction]]:
            self._planned.remove(planned)
            self.cut(planned.cut)
            planned.is_done.set()


class _Line:
    """What is under way in one direction of one connection, in order."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._under_way: deque[tuple[float, bytes]] = deque()  # When it is due, and what; empty: the end.
        self._bytes = 0
        self._changed = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Wait for room, then send on its way."""
        while self._bytes and self._bytes + len(data) > self._shape.queue:
            self._changed.clear()
            await self._changed.wait()
        self._under_way.append((asyncio.get_running_loop().time() + self._shape.delay, data))
        self._bytes += len(data)
        self._changed.set()

    async def get(self) -> bytes:
        """The next that has arrived."""
        while not self._under_way:
            self._changed.clear()
            await self._changed.wait()
        due, data = self._under_way[0]
        left = due - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)
        self._under_way.popleft()
        self._bytes -= len(data)
        self._changed.set()
        return data


def _socket(shape: Shape) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if shape.rate:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            made.setsockopt(socket.SOL_SOCKET, option, SLOW_BUFFER_BYTES)
    return made


def _reset_on_close(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@asynccontextmanager
async def open_proxy(to: Endpoint, shape: Shape = Shape()) -> AsyncIterator[Proxy]:
    """A link to that endpoint; all its connections are gone at the end."""
    listener = _socket(shape)  # Sockets that it accepts take over its buffers.
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        async with task_group() as group:
            proxy = Proxy(to, shape, listener, group)
            serving = group.create_task(proxy.serve())
            try:
                yield proxy
            finally:
                serving.cancel()
                proxy.cut(Cut.REFUSE)


@asynccontextmanager
async def open_proxies(targets: Iterable[Endpoint], shape: Shape = Shape()) -> AsyncIterator[list[Proxy]]:
    """A link of its own to each of the endpoints."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_proxy(target, shape)) for target in targets]
