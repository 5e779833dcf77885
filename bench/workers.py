"""Processes that measure together: each holds one object, whose methods the bench calls through a pipe."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

from bench.machines import HERE, Machine, enter
from distqat.rpc.loop import run

Open = Callable[..., AbstractAsyncContextManager[Any]]

LEAVE_SECONDS = 10.0
"""For a process to leave in good order; then it is killed."""


class WorkerError(RuntimeError):
    """A process of the bench has died; what it said is on standard error."""


class Worker:
    """Another process, as the bench speaks to it."""

    def __init__(self, name: str, pid: int, connection: Connection) -> None:
        self.name = name
        self.pid = pid
        self._connection = connection

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object there, and wait for what it returns. Raises WorkerError."""
        try:
            self._connection.send((method, arguments))
            return await asyncio.to_thread(self._connection.recv)
        except (EOFError, OSError):
            raise WorkerError(f"{self.name} died while it was asked to {method}") from None


@asynccontextmanager
async def open_worker(name: str, open_object: Open, *arguments: Any, machine: Machine = HERE) -> AsyncIterator[Worker]:
    """A process on a machine in which `open_object(*arguments)` is entered, on an event loop of its own."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_main, args=(there, machine, open_object, arguments), name=name, daemon=True)
    process.start()
    there.close()
    try:
        assert process.pid is not None
        yield Worker(name, process.pid, here)
    finally:
        here.close()
        await asyncio.to_thread(process.join, LEAVE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _main(connection: Connection, machine: Machine, open_object: Open, arguments: tuple[Any, ...]) -> None:
    if machine.namespace is not None:
        enter(machine.namespace)  # Before there are threads that stay behind.
    run(_answer(connection, open_object, arguments))


async def _answer(connection: Connection, open_object: Open, arguments: tuple[Any, ...]) -> None:
    """Answer until the bench hangs up."""
    async with open_object(*arguments) as answering:
        while True:
            try:
                method, values = await asyncio.to_thread(connection.recv)
            except EOFError:
                return
            connection.send(await getattr(answering, method)(*values))
