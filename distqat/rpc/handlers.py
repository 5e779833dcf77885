"""The answering side of a server: which services there are, which handlers run, and what becomes of their errors.

Both transports use it. Every handler runs as a task of the server's own group, so none outlives the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distqat import errors
from distqat.errors import DistqatError, RefusedError, RemoteError, RpcError, UnreachableError
from distqat.rpc.transport import CallHandler, Service, StreamHandler

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_TIMEOUT = 5.0
"""Seconds that a cancelled handler is given to clean up before it is cancelled again, and the log says so."""


LINGER_TIMEOUT = 1.0
"""Seconds that a stream whose handler has ended waits for its caller to finish or leave."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a handler came to: a value, or an error for the caller."""

    value: T | None = None
    error: DistqatError | None = None

    def get(self) -> T:
        """The value, or the error raised."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # A handler that returned has a value.


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A TaskGroup for tasks that never fail: an error of the body leaves as it was raised, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        if len(failures.exceptions) > 1:
            raise
        error = failures.exceptions[0]
        raise error from error.__cause__


class Handlers:
    """Services and running handlers of one server."""

    def __init__(self, name: str, group: asyncio.TaskGroup) -> None:
        self.name = name  # Where the server listens, for messages.
        self.group = group  # Owns every handler's task.
        self._services: dict[str, Service] = {}
        self._running: dict[asyncio.Task[Any], str] = {}  # Handlers at work, by service.
        self._lingering: set[asyncio.Timeout] = set()  # Streams whose handlers have ended.
        self._closed = False  # No handler starts any more.

    def __repr__(self) -> str:
        return f"<Handlers of {self.name}: {', '.join(self._services) or 'no service'}, {len(self._running)} running>"

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str) -> AsyncIterator[Handlers]:
        """Handlers whose tasks are cancelled and joined at the end."""
        async with task_group() as group:
            handlers = cls(name, group)
            try:
                yield handlers
            finally:
                await handlers.close()

    @property
    def services(self) -> Mapping[str, Service]:
        """What is served, by full name."""
        return self._services

    @property
    def num_running(self) -> int:
        """Handlers at work."""
        return len(self._running)

    def add(self, service: Service) -> None:
        """Answer for this service; replaces one of the same name."""
        self._services[service.name] = service

    async def remove(self, name: str) -> None:
        """Stop answering for it; cancel its handlers and join them."""
        self._services.pop(name, None)
        await self._stop([task for task, service in self._running.items() if service == name])

    async def close(self) -> None:
        """Start no more; cancel all handlers and join them; one that is slow is cancelled again."""
        self._closed = True
        for timeout in self._lingering:
            if not timeout.expired():
                timeout.reschedule(asyncio.get_running_loop().time())
        await self._stop(list(self._running))

    def abandon(self) -> None:
        """As if the process had died: cancel all handlers at once and answer no more."""
        self._closed = True
        for task in list(self._running):
            task.cancel()

    def call(self, service: str, method: str) -> CallHandler:
        """Who answers a call; raises RefusedError."""
        handler = self._find(service).calls.get(method)
        if handler is None:
            raise RefusedError(f"{service} at {self.name} has no call {method}")
        return handler

    def stream(self, service: str, method: str) -> StreamHandler:
        """Who answers a stream; raises RefusedError."""
        handler = self._find(service).streams.get(method)
        if handler is None:
            raise RefusedError(f"{service} at {self.name} has no stream {method}")
        return handler

    def start(self, service: str, work: Callable[[], Awaitable[T]]) -> asyncio.Task[Outcome[T]]:
        """Begin a handler; its task never fails, it may be cancelled. Raises UnreachableError while closing."""
        if self._closed:
            raise UnreachableError(f"{self.name} is closing")
        task = self.group.create_task(_outcome(service, work), name=f"{service} at {self.name}")
        self._running[task] = service
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return task

    async def run(self, service: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run a handler, and be cancelled with it. Raises its DistqatError; UnreachableError if it was stopped."""
        return await self.join(service, self.start(service, work))

    async def join(self, service: str, task: asyncio.Task[Outcome[T]]) -> T:
        """The value of a handler that was started; a waiter that leaves cancels it."""
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if task.cancelled():
            raise UnreachableError(f"{service} at {self.name} was stopped")
        return task.result().get()

    async def linger(self, work: Callable[[], Awaitable[None]]) -> None:
        """Let a stream whose handler has ended say its last words, for a short while and not while closing."""
        if self._closed:
            return
        timeout = asyncio.timeout(LINGER_TIMEOUT)
        try:
            async with timeout:
                self._lingering.add(timeout)
                await work()
        except (TimeoutError, RpcError):
            pass  # The caller does not listen, or has left.
        finally:
            self._lingering.discard(timeout)

    def _find(self, service: str) -> Service:
        if service not in self._services:
            raise RefusedError(f"{service} is not served at {self.name}")
        return self._services[service]

    async def _stop(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        while tasks:
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
            for task in tasks:
                log.error("%s does not end after it was cancelled; it is cancelled again: %r", task.get_name(), task)


def rebuild(kind: str, message: str) -> DistqatError:
    """A peer's error as what it was there; RemoteError if its class is unknown here."""
    known = errors.find(kind)
    return known(message) if known is not None else RemoteError(f"{kind}: {message}")


def again(error: DistqatError) -> DistqatError:
    """The same error for another reader, without the traceback of the first."""
    return rebuild(type(error).__name__, error.reason)


async def _outcome(service: str, work: Callable[[], Awaitable[T]]) -> Outcome[T]:
    """The boundary of the server: a handler's fault is logged and told to the caller, and harms nobody else."""
    try:
        return Outcome(await work())
    except Exception as error:
        told = _own(error)
        if told is None:
            log.exception("a handler of %s failed", service)
            told = RemoteError(f"{service} failed: {type(error).__name__}: {error}")
        return Outcome(error=told)


def _own(error: BaseException) -> DistqatError | None:
    """The error if it is of our tree, or the first of a group of such; else None."""
    if isinstance(error, DistqatError):
        return error
    if isinstance(error, BaseExceptionGroup):
        leaves = [_own(leaf) for leaf in error.exceptions]
        return leaves[0] if all(leaf is not None for leaf in leaves) else None
    return None
