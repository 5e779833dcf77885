"""The batches of one pipeline that are given up: what fails in the same way again and again, or cannot be read.

Each is told of once: in the log, as a metric line and as an event. The books count it when it is refused.
"""

from __future__ import annotations

import logging

from distqat.data.client import UnreadableError
from distqat.ids import PipelineId
from distqat.roles.events.chronicle import Chronicle
from distqat.roles.refusals import MOST_REFUSED, Doubts, Failure
from distqat.roles.supply import Supply
from distqat.telemetry import Telemetry

log = logging.getLogger(__name__)


class Skips:
    """Of one pipeline at its trainer."""

    def __init__(self, pipeline: PipelineId, telemetry: Telemetry, chronicle: Chronicle) -> None:
        self.fault = ""  # Why the pipeline is given up; empty while it is not.
        self._pipeline = pipeline
        self._telemetry = telemetry
        self._chronicle = chronicle
        self._doubts = Doubts()

    def __repr__(self) -> str:
        return f"<Skips of {self._pipeline}: {self.fault or self._doubts}>"

    def failed(self, failure: Failure, supply: Supply) -> None:
        """A step failed; from now on one may be under way at a time, if it may be its batch."""
        supply.is_careful = self._doubts.failed(failure)

    def committed(self, supply: Supply) -> None:
        """A step was committed."""
        self._doubts.committed()
        supply.is_careful = False

    async def reconsider(self, supply: Supply, step: int) -> None:
        """Give up the batch of that step if it fails again and again."""
        why = self._doubts.why_refuse()
        if not why:
            return
        batch = await supply.refuse(why)
        self._tell(batch.begin, batch.end, why, step)
        if self._doubts.refused():
            self.fault = f"every batch fails: {why}"

    def unreadable(self, error: UnreadableError, step: int) -> None:
        """The batch that should have been that step's cannot be read, and was refused."""
        self._tell(error.begin, error.end, error.reason, step)
        if error.in_a_row >= MOST_REFUSED:
            self.fault = f"every batch fails: {error.reason}"

    def _tell(self, begin: int, end: int, why: str, step: int) -> None:
        log.warning("pipeline %s skips samples %d to %d: %s", self._pipeline, begin, end, why)
        self._telemetry.record("skipped", {"pipeline": self._pipeline, "reason": why}, {"samples": end - begin})
        self._chronicle.skipped(why, step, end - begin)
