"""Devices that take virtual time, so that a route's timing is known to the microsecond."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import torch

from distqat.model.device import Device, Priority
from distqat.pipeline.route import Limits
from distqat.rpc.local import Network
from tests.pipeline.swarm import LIMITS, Recipe, Swarm, Wrap, open_swarm

T = TypeVar("T")

FORWARD, BACKWARD = 0.1, 0.2
"""Seconds of a microbatch."""

COMPUTE = FORWARD + BACKWARD


class TimedDevice(Device):
    """Computes at once, and takes known times for it, one job after the other."""

    def __init__(self, is_last: bool, forward: float = FORWARD, backward: float = BACKWARD) -> None:
        self.torch_device = torch.device("cpu")
        self.busy: list[tuple[float, float, Priority]] = []  # Begin and end of what it did.
        self._turn = asyncio.Lock()
        self._seconds = {
            Priority.FORWARD: forward,
            Priority.BACKWARD: forward + backward if is_last else backward,
            Priority.OTHER: 0.0,
        }

    async def run(self, work: Callable[[], T], priority: Priority = Priority.OTHER) -> T:
        loop = asyncio.get_running_loop()
        async with self._turn:
            began = loop.time()
            await asyncio.sleep(self._seconds[priority])
            self.busy.append((began, loop.time(), priority))
            return work()


@asynccontextmanager
async def open_timed(
    recipe: Recipe,
    stages: int,
    network: Network,
    limits: Limits = LIMITS,
    wrap: Wrap = lambda transport, name: transport,
) -> AsyncIterator[tuple[Swarm, list[TimedDevice]]]:
    """A swarm whose stages all take the same time."""
    async with open_swarm(recipe, stages, limits, network, wrap) as swarm:
        devices = [TimedDevice(index == stages - 1) for index in range(stages)]
        for expert, device in zip(swarm.experts, devices, strict=True):
            expert.device = device
        yield swarm, devices
