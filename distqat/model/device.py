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
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from distqat.beats import every
from distqat.errors import ConfigError, OverloadedError
from distqat.model.standstill import BEAT, Standstill

T = TypeVar("T")

INBOX = 64
"""Jobs of one priority that may wait; who comes then waits for room."""

RECENT = 256
"""Jobs of which the longest is told: what took long once, as the first one does, is forgotten."""


class Priority(IntEnum):
    """What goes first; a lower number is more urgent."""

    BACKWARD = 0
    FORWARD = 1
    OTHER = 2


@dataclass(frozen=True)
class DeviceStatistics:
    """What a device has done. Seconds are those in which the process ran: what it stood still for is left out."""

    jobs: int
    """Jobs that are done, whether they failed or not."""
    waiting: int
    busy_seconds: float
    """Of the jobs that are done."""
    longest_seconds: float
    """Of the longest of the last jobs that are done."""
    running_seconds: float | None
    """Of the job that is running; None when idle."""


@dataclass(eq=False)
class _Job:
    """Work that waits, and where its outcome goes. As a context on the thread it takes what the work raises."""

    work: Callable[[], Any]
    outcome: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def __enter__(self) -> None:
        """The work begins."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # Whoever asked raises it; the thread goes on with the next job.
        self.error = error
        return True

    def hand_over(self) -> None:
        """On the event loop: the outcome reaches whoever asked, unless that was cancelled."""
        if self.outcome.done():
            return
        if self.error is not None:
            self.outcome.set_exception(self.error)
        else:
            self.outcome.set_result(self.result)


class Device:
    """A compute thread with an inbox. Only `open` makes one that works."""

    def __init__(self, name: str, torch_device: torch.device, inbox: int) -> None:
        self.name = name
        self.torch_device = torch_device
        self._loop = asyncio.get_running_loop()
        self._room = {priority: asyncio.Semaphore(inbox) for priority in Priority}
        self._lock = threading.Lock()  # Guards everything below; never held while a job runs.
        self._changed = threading.Condition(self._lock)  # Notified when a job comes, and at the end.
        self._waiting: dict[Priority, deque[_Job]] = {priority: deque() for priority in Priority}
        self._standstill = Standstill(time.monotonic(), time.process_time())
        self._began: float | None = None  # When the running job did, by the clock of `_now`; None when idle.
        self._jobs = 0
        self._busy_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)  # Seconds of the last jobs.
        self._is_closed = False

    def __repr__(self) -> str:
        now = self.statistics()
        state = "idle" if now.running_seconds is None else "busy"
        return f"<Device {self.name} {state}, {now.waiting} waiting, {now.jobs} done>"

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, threads: int = 0, inbox: int = INBOX) -> AsyncIterator[Self]:
        """A working device: `cpu`, `cuda` or `cuda:N`; `threads` of one torch operation, 0: torch decides.

        On leaving, jobs that wait are refused, the running one is finished and the thread joined.
        Raises ConfigError for a device that this machine does not have.
        """
        device = cls(name, find(name), inbox)
        ready = _Job(partial(_prepare, device.torch_device, threads), device._loop.create_future())
        thread = threading.Thread(target=partial(device._work, ready), name=f"device-{name}")
        thread.start()
        try:
            with _clock_held():
                await ready.outcome
            # Not the event loop's: its clock may be a virtual one, and jobs are of real seconds.
            with every(BEAT, device._look, f"device-{name}-clock"):
                yield device
        finally:
            device._refuse_waiting()
            await asyncio.to_thread(thread.join)

    async def run(self, work: Callable[[], T], priority: Priority = Priority.OTHER) -> T:
        """Run `work` on the device's thread and return, or raise, what it does.

        Waits for room in the inbox. Cancelling a job that waits takes it out; one that runs goes on to its end, and its
        outcome is dropped. Raises OverloadedError when the device is closed.
        """
        async with self._room[priority]:
            job = _Job(work, self._loop.create_future())
            self._put(job, priority)
            try:
                with _clock_held():
                    outcome: T = await job.outcome
            finally:
                self._remove(job, priority)
            return outcome

    def to_end(self, work: Callable[[], T]) -> Callable[[], T]:
        """The same work, over when the device has done it: a CUDA device is only told what to do, and told the next
        thing before. To be wrapped around what is measured, or what others wait for."""
        if self.torch_device.type != "cuda":
            return work

        def whole() -> T:
            result = work()
            torch.cuda.synchronize(self.torch_device)
            return result

        return whole

    def statistics(self) -> DeviceStatistics:
        """A frozen look; may be taken from any thread."""
        with self._lock:
            waiting = sum(len(queue) for queue in self._waiting.values())
            longest = max(self._recent, default=0.0)
            running = self._now() - self._began if self._began is not None else None
            return DeviceStatistics(self._jobs, waiting, self._busy_seconds, longest, running)

    def _put(self, job: _Job, priority: Priority) -> None:
        with self._lock:
            if self._is_closed:
                raise OverloadedError(f"device {self.name} is closed")
            self._waiting[priority].append(job)
            self._changed.notify()

    def _remove(self, job: _Job, priority: Priority) -> None:
        with self._lock:
            if job in self._waiting[priority]:
                self._waiting[priority].remove(job)

    def _refuse_waiting(self) -> None:
        with self._lock:
            self._is_closed = True
            jobs = [job for queue in self._waiting.values() for job in queue]
            for queue in self._waiting.values():
                queue.clear()
            self._changed.notify()
        for job in jobs:
            job.error = OverloadedError(f"device {self.name} is closed")
            job.hand_over()

    # On the thread.

    def _work(self, ready: _Job) -> None:
        with ready:
            ready.work()
        self._hand_over(ready)
        while (job := self._next()) is not None:
            with job:
                job.result = job.work()
            self._account()
            self._hand_over(job)

    def _hand_over(self, job: _Job) -> None:
        # The loop outlives this thread: it joins it.
        self._loop.call_soon_threadsafe(job.hand_over)

    def _next(self) -> _Job | None:
        """Wait for the most urgent job; None at the end."""
        with self._lock:
            while True:
                job = next((queue.popleft() for queue in self._waiting.values() if queue), None)
                if job is not None:
                    self._began = self._now()
                    return job
                if self._is_closed:
                    return None
                self._changed.wait()

    def _account(self) -> None:
        with self._lock:
            assert self._began is not None
            seconds = self._now() - self._began
            self._began = None
            self._jobs += 1
            self._busy_seconds += seconds
            self._recent.append(seconds)

    def _now(self) -> float:
        """Seconds of a clock that stands still with the process. The lock is held."""
        now = time.monotonic()
        self._standstill.look(now, time.process_time())
        return now - self._standstill.seconds

    def _look(self) -> None:
        with self._lock:
            self._now()


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
