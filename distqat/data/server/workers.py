"""Processes that make samples: each is told a part of a slot and writes it there, where trainers read it.

They are forked off the server when its data set is open and before it listens, so that they share what was read. One
that ends takes the server with it: the client starts both anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distqat.data.sampler import Sampler
from distqat.data.server.blocks import Blocks, map_for_writing
from distqat.data.server.layout import Layout
from distqat.data.server.lifeline import hear, on_parents_death
from distqat.data.server.ring import Job
from distqat.data.sources.splits import Arrays, Source, training_batch
from distqat.errors import DataError

MESSAGE_BYTES = 1 << 16
"""More than an order or an answer has."""

MAX_FAULT = 400
"""Characters of a fault that are told."""

TIMES_SLOWEST = 10.0
"""So many times as long as the slowest samples yet may others take, before a worker is taken for hung."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How samples are made and laid out."""

    source: Source
    sampler: Sampler
    layout: Layout
    rows: int
    """Of a slot."""
    folder: Path

    def make(self, held_out: bool, begin: int, end: int) -> Arrays:
        """Samples at positions of the run's order, or of the held-out ones by index. Raises DataError."""
        arrays, layout = read(self.source, self.sampler, held_out, begin, end)
        if layout != self.layout:
            raise DataError(f"samples {begin} to {end} are {layout.columns}, the first ones {self.layout.columns}")
        return arrays

    def write(self, job: Job, slot: memoryview) -> None:
        """Make that part of a slot. Raises DataError."""
        arrays = self.make(job.held_out, job.begin, job.end)
        for name, view in self.layout.views(slot, self.rows, job.row, job.end - job.begin).items():
            if arrays[name].shape != view.shape:
                raise DataError(f"samples {job.begin} to {job.end} have '{name}' of shape {arrays[name].shape}")
            view[:] = arrays[name]


def read(source: Source, sampler: Sampler, held_out: bool, begin: int, end: int) -> tuple[Arrays, Layout]:
    """Samples at positions of the run's order, or of the held-out ones by index. Raises DataError, whatever happens."""
    try:
        if held_out:
            arrays = source.held_out.batch(np.arange(begin, end, dtype=np.int64))
        else:
            arrays = training_batch(source.train, sampler.indices(begin, end), begin)
        return arrays, Layout.of(arrays)
    except DataError:
        raise
    except Exception as error:
        # Files, and the code of those who decode them: one sample must not take the server down.
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise DataError(f"samples {begin} to {end} cannot be read: {what}") from error


@dataclass
class Pace:
    """How long samples take, as all workers of a server have found."""

    least: float
    """Seconds that a part may take, however fast they are."""
    slowest: float
    """Seconds for each sample of the slowest part."""
    is_guess: bool = True
    """It is known from one sample alone, as it was when the data set was opened."""

    def limit(self, samples: int) -> float:
        """Seconds after which a worker that makes so many is taken for hung."""
        return max(self.least, TIMES_SLOWEST * self.slowest * samples)

    def took(self, samples: int, seconds: float) -> None:
        """A part was made. More than the limit was no making: this process was stopped meanwhile."""
        each = min(seconds, self.limit(samples)) / samples
        self.slowest = each if self.is_guess else max(self.slowest, each)
        self.is_guess = False


class Worker:
    """One of the processes, as the server sees it."""

    def __init__(self, pid: int, control: socket.socket, pace: Pace) -> None:
        self.pid = pid
        self._control = control
        self._pace = pace

    def __repr__(self) -> str:
        return f"<Worker {self.pid}>"

    async def make(self, job: Job, block: str) -> str:
        """Make a part of a slot in that block; why it cannot be made, or nothing. Raises DataError: the worker is
        gone, stopped or hung."""
        samples = job.end - job.begin
        limit = self._pace.limit(samples)
        order = {"block": block, "slot": job.slot, "row": job.row, "held_out": job.held_out}
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await loop.sock_sendall(self._control, json.dumps({**order, "begin": job.begin, "end": job.end}).encode())
            answer = await hear(self._receive, limit)
        except TimeoutError:
            what = "held-out samples" if job.held_out else "samples"
            raise DataError(f"a worker did not make {what} {job.begin} to {job.end} in {limit:.3g} s") from None
        except OSError as error:
            raise DataError(f"a worker of the data server is gone: {error}") from None
        self._pace.took(samples, loop.time() - began)
        if not answer:
            raise DataError("a worker of the data server has ended")
        return str(json.loads(answer)["fault"])

    def check(self) -> None:
        """See that it lives, also while there is nothing to make. Raises DataError."""
        with suppress(ChildProcessError):  # It was seen to have ended before, which was told then.
            if os.waitpid(self.pid, os.WNOHANG) != (0, 0):
                raise DataError("a worker of the data server has ended")

    async def _receive(self) -> bytes:
        """Its answer, which is still there if this is cancelled. Raises OSError."""
        loop = asyncio.get_running_loop()
        there = asyncio.Event()
        loop.add_reader(self._control, there.set)
        try:
            await there.wait()
        finally:
            loop.remove_reader(self._control)
        return self._control.recv(MESSAGE_BYTES)


def fork_workers(
    recipe: Recipe, blocks: Blocks, number: int, pace: Pace, inherited: Sequence[socket.socket]
) -> list[Worker]:
    """So many; in each of them this does not return. What was inherited is closed there."""
    workers: list[Worker] = []
    for _ in range(number):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _be_worker(recipe, blocks, theirs, [ours, *inherited, *(worker._control for worker in workers)])
        theirs.close()
        ours.setblocking(False)
        workers.append(Worker(pid, ours, pace))
    return workers


def _be_worker(recipe: Recipe, blocks: Blocks, control: socket.socket, others: Sequence[socket.socket]) -> None:
    """Until the server closes its end, or is gone."""
    code = 1
    try:
        on_parents_death(signal.SIGKILL)
        for other in others:
            other.close()
        blocks.leave_lock()
        work(recipe, control)
        code = 0
    finally:
        os._exit(code)


def work(recipe: Recipe, control: socket.socket) -> None:
    """Make what is ordered, one part after the other."""
    slots: dict[int, tuple[str, memoryview]] = {}  # By number: the block that it is, mapped.
    while text := control.recv(MESSAGE_BYTES):
        order = json.loads(text)
        block, slot = order["block"], order["slot"]
        if slots.get(slot, ("",))[0] != block:
            slots[slot] = (block, map_for_writing(block, recipe.folder))
        job = Job(slot, order["row"], order["held_out"], order["begin"], order["end"])
        control.send(json.dumps({"fault": _write(recipe, job, slots[slot][1])}).encode())


def _write(recipe: Recipe, job: Job, slot: memoryview) -> str:
    """Why it cannot be made; empty: it is."""
    try:
        recipe.write(job, slot)
    except DataError as error:
        return error.reason[:MAX_FAULT] or "it cannot be read"
    return ""
