"""What a run of processes has cost: seconds, CPU, and bytes that left their machines' interfaces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import psutil

from bench.machines import Machine


@dataclass(frozen=True)
class Cost:
    """Of one piece of work."""

    seconds: float
    """As the work itself has counted them."""
    cpu: float
    """CPU seconds of all processes."""
    wire: int
    """Bytes that left an interface; with everything that TCP adds."""


@dataclass(frozen=True)
class Reached:
    """What one run has measured."""

    rate: float
    """Samples per second."""
    cpu: float
    """CPU seconds of all processes, for 1000 samples."""
    wire: float
    """Bytes that left an interface, for each sample; with everything that TCP adds."""
    messages: float = 0.0
    """Bytes of messages that were sent, for each sample, as the transport counts them; 0 where nobody counts."""
    busy: float = 1.0
    """Share of the time in which the busiest stage computed."""


Runs = list[Reached]


class Gauge:
    """Measures processes, with what they have started, on their machines."""

    def __init__(self, machines: Sequence[Machine], pids: Sequence[int]) -> None:
        self._machines = list(dict.fromkeys(machines))
        self._processes = [psutil.Process(pid) for pid in pids]

    async def measure(self, samples: int, work: Callable[[], Awaitable[float]]) -> Reached:
        """Of `work`, which returns the seconds that it has taken."""
        cost = await self.cost(work)
        return Reached(samples / cost.seconds, cost.cpu / samples * 1000, cost.wire / samples)

    async def cost(self, work: Callable[[], Awaitable[float]]) -> Cost:
        """The same as it is."""
        sent, cpu = self._sent(), self._cpu()
        seconds = await work()
        return Cost(seconds, self._cpu() - cpu, self._sent() - sent)

    def _sent(self) -> int:
        return sum(machine.sent() for machine in self._machines)

    def _cpu(self) -> float:
        family = {one for process in self._processes for one in (process, *process.children(recursive=True))}
        return sum(times.user + times.system for times in (one.cpu_times() for one in family))
