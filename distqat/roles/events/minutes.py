"""What the client tells of its plan: what it decided, why, and what came to nothing."""

from __future__ import annotations

import asyncio

from distqat.errors import DistqatError
from distqat.event_log import EventLog
from distqat.events import Kind, Subject
from distqat.ids import PipelineId, StageIndex, short
from distqat.roles.plan import Action, Assign, Pipeline

REPEAT_SECONDS = 30.0
"""The plan is made several times a second: a decision that stays as it was is told again only after so long."""


class Minutes:
    """Of one run's plan."""

    def __init__(self, events: EventLog, model: str) -> None:
        self._events = events
        self._model = model
        self._told: dict[str, float] = {}  # By sentence: when it was told last; of the last REPEAT_SECONDS.

    def __repr__(self) -> str:
        return f"<Minutes {len(self._told)} sentences>"

    def assigned(self, action: Assign) -> None:
        """An expert is given a stage."""
        stage = self._stage(action.stage)
        self._tell(
            Kind.ASSIGNED,
            f"{short(action.peer)} is to take {stage}: {action.why}",
            Subject(peer=action.peer, stage=stage),
        )

    def formed(self, pipeline: Pipeline, why: str) -> None:
        """A trainer is told to drive this route."""
        chain = " > ".join(short(seat.peer) for seat in pipeline.route)
        text = (
            f"pipeline {pipeline.id} epoch {pipeline.epoch} is to run over {chain}, driven by {short(pipeline.trainer)}"
        )
        self._tell(Kind.FORMED, f"{text}: {why}", _of(pipeline))

    def adopted(self, pipeline: Pipeline) -> None:
        """A pipeline that an earlier client formed is this client's now."""
        text = f"pipeline {pipeline.id} epoch {pipeline.epoch} is found with {short(pipeline.trainer)} and goes on"
        self._tell(Kind.ADOPTED, text, _of(pipeline))

    def dissolved(self, pipeline: PipelineId, why: str) -> None:
        """A pipeline is given up."""
        self._tell(Kind.DISSOLVED, f"pipeline {pipeline} is dissolved: {why}", Subject(pipeline=pipeline))

    def fenced(self, pipeline: str) -> None:
        """Nobody drives a pipeline any more; what it had claimed and not committed goes to others."""
        self._tell(
            Kind.FENCED,
            f"pipeline {pipeline} is driven by nobody; its samples go to others",
            Subject(pipeline=pipeline),
        )

    def failed(self, action: Action, error: DistqatError) -> None:
        """What was decided could not be done; the next look decides anew."""
        what = type(action).__name__.lower()
        whom = getattr(action, "peer", None) or getattr(action, "trainer", None)
        text = f"to {what}{f' ({short(whom)})' if whom else ''} failed: {error.reason}"
        self._tell(Kind.ACTION_FAILED, text, Subject(how=type(error).__name__, peer=whom))

    def _tell(self, kind: Kind, text: str, subject: Subject) -> None:
        now = asyncio.get_running_loop().time()
        self._told = {said: when for said, when in self._told.items() if now - when < REPEAT_SECONDS}
        if text not in self._told:
            self._told[text] = now
            self._events.record(kind, text, subject)

    def _stage(self, stage: StageIndex) -> str:
        return f"{self._model}/{stage}"


def _of(pipeline: Pipeline) -> Subject:
    return Subject(pipeline=pipeline.id, epoch=pipeline.epoch, peer=pipeline.trainer)
