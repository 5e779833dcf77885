"""Who an expert is among its siblings, and how it reaches them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from distqat.averaging.group import RoundRef
from distqat.averaging.phases import Phase, phase
from distqat.averaging.spans import Shape
from distqat.averaging.waits import Waits
from distqat.errors import DistqatError, RefusedError, UnreachableError, WrongRunError
from distqat.ids import Endpoint, PeerId, RunId, StageIndex, short
from distqat.rpc.transport import Transport
from distqat.sections import SyncSection

T = TypeVar("T")

TINY_ELEMENTS = 1 << 14
"""Vectors up to this size are worked on at once; a thread would take longer to begin."""

LOOK_INTERVAL = 0.1
"""Seconds between two looks at the directory while another sibling is waited for."""


async def wait_changed(changed: asyncio.Event, seconds: float) -> None:
    """Until somebody says that something has changed, at most so long; the next change counts anew."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await changed.wait()
    changed.clear()


class Compute(Protocol):
    """Runs torch work away from the event loop; `model.device.Device` is one."""

    async def run(self, fn: Callable[[], T], /) -> T:
        """The result of `fn`."""
        ...


@dataclass(frozen=True)
class Sibling:
    """An expert of the same stage that is alive, as the directory knows it."""

    peer: PeerId
    endpoint: Endpoint
    round: int
    """Rounds that it has committed."""
    digest: str
    """Of its anchor and momentum."""
    ready: bool
    """It holds committed state (or the fresh numbers of a run that never committed): it may join, lead and donate."""


@dataclass(frozen=True)
class Context:
    """What an averager is told by the role that owns it."""

    me: PeerId
    endpoint: Endpoint
    run: RunId
    stage: StageIndex
    shapes: tuple[Shape, ...]
    """Of the stage's fragments, in their order."""
    transport: Transport
    device: Compute
    sync: SyncSection
    siblings: Callable[[], list[Sibling]]
    """Those alive now, without this one."""
    on_lost: Callable[[PeerId, str], None]
    """Told that a sibling was lost to a round, and why."""
    on_refused: Callable[[PeerId, str], None] = lambda peer, reason: None
    """Told that a sibling's contribution was refused, and why; the log says it too."""

    @cached_property
    def waits(self) -> Waits:
        """How long each part of a round may take."""
        return Waits.of(self.sync, self.num_elements)

    def round(self, number: int) -> RoundRef:
        """The round of that number of this stage."""
        return RoundRef(self.run, self.stage, number)

    @cached_property
    def num_elements(self) -> int:
        """Of all fragments."""
        return sum(shape.num_elements for shape in self.shapes)

    @cached_property
    def state_bytes(self) -> int:
        """Of the anchors and momenta of all fragments."""
        return torch.float32.itemsize * sum(shape.num_elements + shape.num_parameters for shape in self.shapes)

    def phase(self, number: int) -> Phase:
        """How the round of that number is taken."""
        return phase(number, self.sync)

    def elements(self, how: Phase) -> int:
        """Of the fragments that synchronise in such a round."""
        return sum(self.shapes[index].num_elements for index in how.fragments)

    def ready(self) -> dict[PeerId, Sibling]:
        """The live siblings that may join, lead and donate, by name."""
        return {sibling.peer: sibling for sibling in self.siblings() if sibling.ready}

    def is_live(self, peer: PeerId) -> bool:
        """Whether the directory has the sibling now."""
        return any(sibling.peer == peer for sibling in self.siblings())

    def check_round(self, round_: RoundRef) -> None:
        """Raise WrongRunError or RefusedError unless the round is one of this expert's."""
        self.check(round_.run, round_.stage)

    def check(self, run: RunId, stage: StageIndex) -> None:
        """Raise WrongRunError or RefusedError unless both are this expert's."""
        if run != self.run:
            raise WrongRunError(f"{short(self.me)} works for run {self.run}, not {run}")
        if stage != self.stage:
            raise RefusedError(f"{short(self.me)} hosts stage {self.stage}, not {stage}")

    async def work(self, fn: Callable[[], T]) -> T:
        """Torch work on whole vectors: on the device, or at once if they are tiny."""
        if self.num_elements <= TINY_ELEMENTS:
            return fn()
        return await self.device.run(fn)

    async def while_live(self, peer: PeerId, work: Callable[[], Awaitable[T]]) -> T:
        """Do what waits for a sibling. Raises UnreachableError as soon as the directory loses a sibling it had."""

        async def outcome() -> tuple[T | None, DistqatError | None]:
            try:
                return await work(), None
            except DistqatError as error:
                return None, error

        was_live = False
        async with asyncio.TaskGroup() as group:
            task = group.create_task(outcome())
            while not task.done():
                is_live = self.is_live(peer)
                if was_live and not is_live:
                    task.cancel()
                was_live = is_live
                await asyncio.wait({task}, timeout=LOOK_INTERVAL)
        if task.cancelled():
            raise UnreachableError(f"{short(peer)} is not alive any more")
        value, error = task.result()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # Without an error there is a value.
