"""In whose name a stage works on a route, and what the parts of that work share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from distqat.ids import StepRef
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.pipeline.pace import Pace
from distqat.pipeline.route import Limits
from distqat.pipeline.standing import Standing
from distqat.pipeline.words import Open
from distqat.timeline import Timeline, Timelines


class Host(Protocol):
    """The expert in whose name a stage works."""

    stage: Stage
    device: Device

    async def opened(self, opening: Open) -> None:
        """A route wants this stage. May refuse: RefusedError, StaleError, WrongRunError."""
        ...

    async def begin(self, train: bool) -> None:
        """The first forward of a step, or of an evaluation, comes next. Waits while an outer round changes the stage's
        numbers; from a training forward on none may, until `committed` or `closed`."""
        ...

    def orders_round(self, ordered: bool | None) -> bool:
        """Whether an outer round follows the step that was just applied. The first stage of a route decides that,
        where `ordered` is None; the others hear what it says."""
        ...

    async def committed(self, at: StepRef, samples: int) -> None:
        """The optimizer has applied that step. Called once for each, in order, and counts it before it first waits;
        takes what is due of an outer round. Returns when the stage may go on; what was begun goes on if cancelled."""
        ...

    async def settle(self) -> None:
        """Agree with the siblings on all that was learned, now."""
        ...

    def progressed(self) -> None:
        """Work was delivered: the lease is renewed."""
        ...

    async def closed(self, reason: str) -> None:
        """The route is gone."""
        ...


@dataclass(frozen=True)
class Post:
    """A stage's place on one route."""

    host: Host
    standing: Standing
    limits: Limits
    pace: Pace
    timeline: Timeline

    @property
    def stage(self) -> Stage:
        """The host's."""
        return self.host.stage


def unwatched() -> Timelines:
    """Timelines that nobody looks at."""
    return Timelines(time.monotonic, lambda *_: None, capacity=1)
