"""A network in memory: many hosts in one event loop, with delay, loss, partitions and crashes.

Behaves towards the flows as gRPC does (one contract suite holds both). On a `VirtualTimeLoop` delays cost nothing, and
all randomness comes from the network's seed, so a simulation runs the same way every time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from distqat.errors import CannotListenError, DeadlineError, DistqatError, GoneError, UnreachableError
from distqat.ids import Endpoint
from distqat.rpc.cables import Cables
from distqat.rpc.handlers import Handlers, Outcome, again
from distqat.rpc.pipes import LocalStream, Pipe, checked
from distqat.rpc.traffic import Meter
from distqat.rpc.transport import Bytes, Caller, Deadline, Method, Service, Stream
from distqat.rpc.virtual import VirtualTimeLoop

__all__ = ["LocalServer", "LocalTransport", "Network", "VirtualTimeLoop"]

MAX_MESSAGE = 8 << 20
"""Bytes of the largest message, as in gRPC."""

CONNECT_TIMEOUT = 1.0
"""Seconds after which a host behind a partition is unreachable."""

OPEN_TIMEOUT = 5.0
"""Seconds in which a stream without a deadline of its own must be accepted."""

FIRST_PORT = 10_000

_ANY_HOST = frozenset({"", "0.0.0.0", "::", "localhost", "127.0.0.1"})


@dataclass(eq=False)
class _Link:
    """A call or stream under way between two hosts."""

    caller: str
    callee: str
    break_off: Callable[[DistqatError], None]
    is_stream: bool

    def between(self, side_a: Collection[str], side_b: Collection[str]) -> bool:
        """Whether it crosses from one side to the other."""
        return (self.caller in side_a and self.callee in side_b) or (self.caller in side_b and self.callee in side_a)


class Network:
    """All hosts, and what befalls the packets between them; the faults may be changed at any time.

    `delay` and `jitter` are seconds one way (a packet takes delay to delay + jitter), `loss` and `duplicate` the
    probabilities that a unary request or its answer is lost, and that a request is delivered twice. A lost one shows as
    DeadlineError. Streams lose nothing; they break on partitions and crashes. `cables` may limit the rate of a host's
    streams. A host reaches itself at once, always.
    """

    def __init__(
        self, seed: int = 0, delay: float = 0.0, jitter: float = 0.0, loss: float = 0.0, duplicate: float = 0.0
    ) -> None:
        self.delay = delay
        self.jitter = jitter
        self.loss = loss
        self.duplicate = duplicate
        self.connect_timeout = CONNECT_TIMEOUT
        self.cables = Cables()
        self.servers: dict[Endpoint, LocalServer] = {}
        self._random = random.Random(seed)
        self._transports: dict[str, list[LocalTransport]] = {}  # Those that have not crashed, by host.
        self._cuts: list[tuple[frozenset[str], frozenset[str]]] = []  # No packet passes from the first to the second.
        self._links: dict[_Link, None] = {}  # Calls and streams under way, oldest first.
        self._next_port = FIRST_PORT

    def __repr__(self) -> str:
        return f"<Network {len(self.servers)} servers, {len(self._links)} links, {len(self._cuts)} cuts>"

    def transport(self, host: str, max_message: int = MAX_MESSAGE) -> LocalTransport:
        """The network as this host sees it; also brings a crashed host back."""
        transport = LocalTransport(self, host, max_message)
        self._transports.setdefault(host, []).append(transport)
        return transport

    def partition(self, side_a: Collection[str], side_b: Collection[str], one_way: bool = False) -> None:
        """Let no packet pass between the sides; one way: none from the first to the second. Streams between break."""
        self._cuts.append((frozenset(side_a), frozenset(side_b)))
        if not one_way:
            self._cuts.append((frozenset(side_b), frozenset(side_a)))
        for link in [link for link in self._links if link.is_stream and link.between(side_a, side_b)]:
            link.break_off(UnreachableError(f"the network between {link.caller} and {link.callee} was cut"))

    def heal(self) -> None:
        """End all partitions."""
        self._cuts.clear()

    def crash(self, host: str) -> None:
        """The host is gone: nobody listens there, its handlers are cancelled, its calls and streams break."""
        for transport in self._transports.pop(host, []):
            transport.crashed = True
        for endpoint in [endpoint for endpoint in self.servers if endpoint.host == host]:
            self.servers.pop(endpoint).handlers.abandon()
        for link in [link for link in self._links if host in (link.caller, link.callee)]:
            link.break_off(UnreachableError(f"{host} has crashed"))

    # What follows is for the transports.

    def listen(self, host: str, listen: Endpoint, handlers: Handlers, meter: Meter) -> LocalServer:
        """A server at that address; raises CannotListenError."""
        if listen.host != host and listen.host not in _ANY_HOST:
            raise CannotListenError(f"cannot listen at {listen}: {host} has no such address")
        endpoint = Endpoint(host, listen.port)
        if endpoint.port == 0:
            endpoint = Endpoint(host, self._next_port)
            self._next_port += 1
        if endpoint in self.servers:
            raise CannotListenError(f"cannot listen at {endpoint}: the port is in use")
        handlers.name = str(endpoint)
        server = LocalServer(endpoint, handlers, meter)
        self.servers[endpoint] = server
        return server

    def vanish(self, server: LocalServer) -> None:
        """Nobody listens there any more."""
        if self.servers.get(server.endpoint) is server:
            del self.servers[server.endpoint]

    def link(self, link: _Link) -> _Link:
        """Let the link share the fate of its hosts, until it is unlinked."""
        self._links[link] = None
        return link

    def unlink(self, link: _Link) -> None:
        """It is over."""
        self._links.pop(link, None)

    def flight(self, source: str, target: str, size: int = 0) -> float:
        """Seconds that the next packet takes, or a message of that many bytes on a stream."""
        if source == target:
            return 0.0
        way = self.delay + (self._random.uniform(0.0, self.jitter) if self.jitter else 0.0)
        return way + (self.cables.seconds(source, target, size, asyncio.get_running_loop().time()) if size else 0.0)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether packets that way are swallowed."""
        return source != target and any(source in side_a and target in side_b for side_a, side_b in self._cuts)

    def loses(self, source: str, target: str) -> bool:
        """Whether the next unary message that way is lost."""
        if self.is_cut(source, target):
            return True
        return source != target and self.loss > 0 and self._random.random() < self.loss

    def doubles(self, source: str, target: str) -> bool:
        """Whether the next request that way is delivered twice."""
        return source != target and self.duplicate > 0 and self._random.random() < self.duplicate


class LocalServer:
    """A listening endpoint in memory."""

    def __init__(self, endpoint: Endpoint, handlers: Handlers, meter: Meter) -> None:
        self.handlers = handlers
        self.meter = meter
        self._endpoint = endpoint

    def __repr__(self) -> str:
        return f"<LocalServer {self._endpoint}: {', '.join(self.handlers.services) or 'no service'}>"

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return self._endpoint

    def add(self, service: Service) -> None:
        """Answer for this service; replaces one of the same name."""
        self.handlers.add(service)

    async def remove(self, name: str) -> None:
        """Stop answering for it; its running handlers are cancelled and joined."""
        await self.handlers.remove(name)


class LocalTransport:
    """One host's access to the network in memory."""

    def __init__(self, network: Network, host: str, max_message: int) -> None:
        self.host = host
        self.crashed = False  # Its host is gone; a new transport brings the host back.
        self._network = network
        self._max_message = max_message
        self._meter = Meter()

    def __repr__(self) -> str:
        return f"<LocalTransport {self.host}{' crashed' if self.crashed else ''}>"

    def traffic(self) -> Mapping[str, Bytes]:
        """Message bytes so far by flow."""
        return self._meter.snapshot()

    def uplink(self) -> float:
        """Bytes per second that this host's cable carries out; 0: it is unlimited."""
        return self._network.cables.up(self.host)

    def downlink(self) -> float:
        """Bytes per second that this host's cable carries in; 0: it is unlimited."""
        return self._network.cables.down(self.host)

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        """Ask once and wait for the answer."""
        message = checked(request, self._max_message)
        try:
            async with asyncio.timeout_at(deadline.at):
                return await self._ask(to, method, message, deadline)
        except TimeoutError:
            raise DeadlineError(f"{method} at {to}: no answer in time") from None

    @asynccontextmanager
    async def stream(self, to: Endpoint, method: Method, deadline: Deadline | None = None) -> AsyncIterator[Stream]:
        """Open a stream; entering waits until the other side has accepted it."""
        try:
            async with asyncio.timeout_at((deadline or Deadline.after(OPEN_TIMEOUT)).at):
                server = await self._reach(to, both_ways=True)
                handler = server.handlers.stream(method.service, method.name)
                await asyncio.sleep(self._network.flight(to.host, self.host))
        except TimeoutError:
            raise DeadlineError(f"{method} at {to}: not accepted in time") from None
        up = Pipe(lambda size: self._network.flight(self.host, to.host, size))
        down = Pipe(lambda size: self._network.flight(to.host, self.host, size))
        far = LocalStream(method.flow, down, up, server.meter, self._max_message)
        task = server.handlers.start(method.service, lambda: handler(far, Caller(self.host, deadline)))
        task.add_done_callback(lambda task: _ended(task, str(method), up, down))

        def break_off(error: DistqatError) -> None:
            up.break_off(error)
            down.break_off(error)
            task.cancel()

        link = self._network.link(_Link(self.host, to.host, break_off, is_stream=True))
        late = DeadlineError(f"{method} at {to}: the deadline has passed")
        timer = asyncio.get_running_loop().call_at(deadline.at, break_off, late) if deadline is not None else None
        try:
            yield LocalStream(method.flow, up, down, self._meter, self._max_message)
        finally:
            if timer is not None:
                timer.cancel()
            self._network.unlink(link)
            break_off(UnreachableError(f"{self.host} has left the {method} stream"))

    @asynccontextmanager
    async def serve(self, listen: Endpoint) -> AsyncIterator[LocalServer]:
        """Listen; at the end handlers are cancelled and joined."""
        self._check_alive()
        async with Handlers.open(str(listen)) as handlers:
            server = self._network.listen(self.host, listen, handlers, self._meter)
            try:
                yield server
            finally:
                self._network.vanish(server)

    async def _ask(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        """One request and its answer, each of which may be late or lost."""
        network = self._network
        server = await self._reach(to)
        self._meter.sent(method.flow, request)
        if network.loses(self.host, to.host):
            await _forever()
        try:
            answer = await self._run(server, method, request, deadline)
        except DistqatError as error:
            await self._back(to)
            raise again(error) from None
        await self._back(to)
        checked(answer, self._max_message)
        self._meter.received(method.flow, answer)
        return answer

    async def _run(self, server: LocalServer, method: Method, request: bytes, deadline: Deadline) -> bytes:
        """Let the handler of a unary call work, and be cancelled with it."""
        handler = server.handlers.call(method.service, method.name)
        caller = Caller(self.host, deadline)

        async def answer() -> bytes:
            server.meter.received(method.flow, request)
            reply = bytes(await handler(request, caller))
            server.meter.sent(method.flow, reply)
            return reply

        task = server.handlers.start(method.service, answer)
        if self._network.doubles(self.host, server.endpoint.host):
            server.handlers.start(method.service, answer)
        link = self._network.link(_Link(self.host, server.endpoint.host, lambda _: _cancel(task), is_stream=False))
        try:
            return await server.handlers.join(method.service, task)
        finally:
            self._network.unlink(link)

    async def _reach(self, to: Endpoint, both_ways: bool = False) -> LocalServer:
        """The server at that address, once a packet has got there; raises UnreachableError."""
        self._check_alive()
        network = self._network
        if network.is_cut(self.host, to.host) or (both_ways and network.is_cut(to.host, self.host)):
            await asyncio.sleep(network.connect_timeout)
            raise UnreachableError(f"{to} does not answer")
        await asyncio.sleep(network.flight(self.host, to.host))
        self._check_alive()
        server = network.servers.get(to)
        if server is None:
            await asyncio.sleep(network.flight(to.host, self.host))
            raise GoneError(f"nobody listens at {to}")
        return server

    async def _back(self, to: Endpoint) -> None:
        """The answer is under way, unless it is lost."""
        if self._network.loses(to.host, self.host):
            await _forever()
        await asyncio.sleep(self._network.flight(to.host, self.host))
        self._check_alive()

    def _check_alive(self) -> None:
        if self.crashed:
            raise UnreachableError(f"{self.host} has crashed")


def _ended(task: asyncio.Task[Outcome[None]], method: str, up: Pipe, down: Pipe) -> None:
    """A stream's handler has ended: so does the stream, with its error if there is one."""
    if task.cancelled():
        error: DistqatError | None = UnreachableError(f"{method} was stopped at the other side")
    else:
        error = task.result().error
    down.end(error)
    up.break_off(error or UnreachableError(f"{method}: the other side has ended the stream"))


def _cancel(task: asyncio.Task[Outcome[bytes]]) -> None:
    task.cancel()


async def _forever() -> None:
    """Until the deadline cancels it."""
    await asyncio.get_running_loop().create_future()
