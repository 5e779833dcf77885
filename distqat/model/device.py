"""One compute thread for each device, so that the event loop never runs torch.

Backward work goes before forward work, since it frees memory and lets the peers upstream go on; within a priority the
order is that of asking. The inbox is bounded for each priority, so a crowd of forwards never keeps a backward out.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any, Self, TypeVar

import torch

from distqat.errors import ConfigError, OverloadedError

T = TypeVar("T")

INBOX = 64
"""Jobs of one priority that may wait; who comes then waits for room."""


class Priority(IntEnum):
    """What goes first; a lower number is more urgent."""

    BACKWARD = 0
    FORWARD = 1
    OTHER = 2


@dataclass(frozen=True)
class DeviceStatistics:
    """What a device has done. Times are those of `time.monotonic`."""

    jobs: int
    """Jobs that are done, whether they failed or not."""
    waiting: int
    busy_seconds: float
    """Of the jobs that are done."""
    longest_seconds: float
    """Of the longest job that is done."""
    busy_since: float | None
    """When the running job began; None when idle."""


@dataclass(eq=False)
class _Job:
    """Work that waits, and where its outcome goes."""

    work: Callable[[], Any]
    outcome: Future[Any] = field(default_factory=Future)


class Device:
    """A compute thread with an inbox. Only `open` makes one that works."""

    def __init__(self, name: str, torch_device: torch.device, executor: ThreadPoolExecutor, inbox: int) -> None:
        self.name = name
        self.torch_device = torch_device
        self._executor = executor  # Its one thread runs `_next` once for each job that was put in.
        self._room = {priority: asyncio.Semaphore(inbox) for priority in Priority}
        self._lock = threading.Lock()  # Guards everything below; never held while a job runs.
        self._waiting: dict[Priority, deque[_Job]] = {priority: deque() for priority in Priority}
        self._running: _Job | None = None  # None when idle.
        self._busy_since: float | None = None  # When `_running` began.
        self._jobs = 0
        self._busy_seconds = 0.0
        self._longest_seconds = 0.0
        self._is_closed = False

    def __repr__(self) -> str:
        now = self.statistics()
        state = "idle" if now.busy_since is None else "busy"
        return f"<Device {self.name} {state}, {now.waiting} waiting, {now.jobs} done>"

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, threads: int = 0, inbox: int = INBOX) -> AsyncIterator[Self]:
        """A working device: `cpu`, `cuda` or `cuda:N`; `threads` of one torch operation, 0: torch decides.

        On leaving, jobs that wait are refused, the running one is finished and the thread joined.
        Raises ConfigError for a device that this machine does not have.
        """
        torch_device = find(name)
        executor = ThreadPoolExecutor(1, f"device-{name}", initializer=partial(_prepare, torch_device, threads))
        device = cls(name, torch_device, executor, inbox)
        try:
            yield device
        finally:
            device._refuse_waiting()
            await asyncio.to_thread(executor.shutdown)

    async def run(self, work: Callable[[], T], priority: Priority = Priority.OTHER) -> T:
        """Run `work` on the device's thread and return, or raise, what it does.

        Waits for room in the inbox. Cancelling a job that waits takes it out; one that runs goes on to its end, and its
        outcome is dropped. Raises OverloadedError when the device is closed.
        """
        async with self._room[priority]:
            job = _Job(work)
            self._put(job, priority)
            try:
                with _clock_held():
                    outcome: T = await asyncio.wrap_future(job.outcome)
            finally:
                self._remove(job, priority)
            return outcome

    def statistics(self) -> DeviceStatistics:
        """A frozen look; may be taken from any thread."""
        with self._lock:
            waiting = sum(len(queue) for queue in self._waiting.values())
            return DeviceStatistics(self._jobs, waiting, self._busy_seconds, self._longest_seconds, self._busy_since)

    def _put(self, job: _Job, priority: Priority) -> None:
        # With the lock held the thread cannot finish `_next` before it is known what to do then.
        with self._lock:
            if self._is_closed:
                raise OverloadedError(f"device {self.name} is closed")
            self._waiting[priority].append(job)
            self._executor.submit(self._next).add_done_callback(self._done)

    def _remove(self, job: _Job, priority: Priority) -> None:
        with self._lock:
            if job in self._waiting[priority]:
                self._waiting[priority].remove(job)

    def _next(self) -> Any:
        """On the thread: the most urgent job, or nothing where it was cancelled in the meantime."""
        with self._lock:
            job = next((queue.popleft() for queue in self._waiting.values() if queue), None)
            if job is None or not job.outcome.set_running_or_notify_cancel():
                return None
            self._running, self._busy_since = job, time.monotonic()
        return job.work()

    def _done(self, finished: Future[Any]) -> None:
        """On the thread, right after `_next`: account for the job and hand its outcome on."""
        with self._lock:
            job, self._running = self._running, None
            if job is None or self._busy_since is None:
                return
            seconds = time.monotonic() - self._busy_since
            self._busy_since = None
            self._jobs += 1
            self._busy_seconds += seconds
            self._longest_seconds = max(self._longest_seconds, seconds)
        error = finished.exception()
        if error is not None:
            job.outcome.set_exception(error)
        else:
            job.outcome.set_result(finished.result())

    def _refuse_waiting(self) -> None:
        with self._lock:
            self._is_closed = True
            jobs = [job for queue in self._waiting.values() for job in queue]
            for queue in self._waiting.values():
                queue.clear()
        for job in jobs:
            if job.outcome.set_running_or_notify_cancel():
                job.outcome.set_exception(OverloadedError(f"device {self.name} is closed"))


def find(name: str) -> torch.device:
    """The torch device of that name; raises ConfigError when this machine has none."""
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and ":" in name):
        raise ConfigError(f"unknown device '{name}'; there are: cpu, cuda, cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"device '{name}': this machine, or this build of torch, has no CUDA; use cpu")
    index = int(number or 0)
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device '{name}': there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return torch.device("cuda", index)


def _prepare(device: torch.device, threads: int) -> None:
    """On the thread, before the first job."""
    if threads:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _clock_held() -> AbstractContextManager[None]:
    """On a virtual clock computing takes no time; on a real one there is nothing to hold."""
    hold: Callable[[], AbstractContextManager[None]] = getattr(asyncio.get_running_loop(), "hold", nullcontext)
    return hold()
