"""What the trainer of a pipeline tells of its routes: how they open, break and are mended, and how long that takes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from distqat.event_log import EventLog
from distqat.events import Kind, Subject
from distqat.ids import PipelineId, short
from distqat.pipeline.route import HopError, Route
from distqat.roles.epochs import order_and_attempt


class Chronicle:
    """Of one pipeline at its trainer."""

    def __init__(self, events: EventLog, pipeline: PipelineId) -> None:
        self._events = events
        self._pipeline = pipeline
        self._route: Route | None = None  # That is open, or was tried last; None before the first.
        self._said = ""  # Of the break that goes on; empty while the route is open.
        self._broken = 0.0  # When the route broke.
        self._is_broken = False  # Nothing has been committed since.
        self._is_over = False  # That it is finished or stopped was told.

    def __repr__(self) -> str:
        return f"<Chronicle of {self._pipeline}{': broken' if self._is_broken else ''}>"

    def opens(self, route: Route) -> None:
        """This route is tried next."""
        self._route = route
        self._is_over = False

    def opened(self, step: int) -> None:
        """It is open, with so many steps committed."""
        self._said = ""
        chain = " > ".join(short(seat.peer) for seat in self._route.seats) if self._route is not None else ""
        self._events.record(
            Kind.EPOCH_OPENED, f"pipeline {self._pipeline}: opened the route {chain} at step {step}", self._at(step)
        )

    def broke(self, error: HopError, step: int) -> None:
        """It broke, or did not open; told once, however often it is tried again."""
        self._interrupted()
        said = f"pipeline {self._pipeline} broke at {short(error.peer)}: {error.kind}: {error.reason}"
        if said != self._said:
            self._said = said
            self._events.record(Kind.HOP_BROKE, said, self._at(step, peer=error.peer, how=error.kind))

    def left(self) -> None:
        """It was left for another order of the client."""
        self._interrupted()

    def replays(self, step: int) -> None:
        """What was submitted from this step on and is not committed is submitted again."""
        self._events.record(Kind.STEP_REPLAYED, f"pipeline {self._pipeline} replays from step {step}", self._at(step))

    def skipped(self, why: str, step: int, samples: int) -> None:
        """The batch of that step is given up."""
        text = f"pipeline {self._pipeline} skips the {samples} samples of step {step}: {why}"
        self._events.record(Kind.BATCH_SKIPPED, text, replace(self._at(step), samples=samples))

    def without_evaluations(self, why: str, step: int) -> None:
        """No further evaluation is tried."""
        text = f"pipeline {self._pipeline} goes on without evaluations: {why}"
        self._events.record(Kind.EVALUATIONS_ENDED, text, self._at(step))

    def committed(self, step: int) -> None:
        """A step is committed; if it is the first after a break, that is over."""
        if not self._is_broken:
            return
        self._is_broken = False
        seconds = self._now() - self._broken
        text = f"pipeline {self._pipeline} has committed step {step}, {seconds:.2f} s after its route broke or was left"
        self._events.record(Kind.RECOVERED, text, self._at(step, seconds=seconds))

    def over(self, step: int, is_finished: bool) -> None:
        """It is driven no further."""
        if self._is_over:
            return
        self._is_over = True
        kind = Kind.PIPELINE_FINISHED if is_finished else Kind.PIPELINE_STOPPED
        why = "finished: the budget is committed" if is_finished else "stopped"
        self._events.record(kind, f"pipeline {self._pipeline} is {why}, at step {step}", self._at(step))

    def _interrupted(self) -> None:
        if not self._is_broken:
            self._is_broken, self._broken = True, self._now()

    def _at(self, step: int, peer: str | None = None, how: str | None = None, seconds: float | None = None) -> Subject:
        order, attempt = order_and_attempt(self._route.epoch) if self._route is not None else (0, 0)
        return Subject(
            pipeline=self._pipeline, epoch=order, attempt=attempt, step=step, peer=peer, how=how, seconds=seconds
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
