"""The evaluations of one pipeline: over the held-out samples, and given up when they fail again and again.

A batch that fails is skipped (`refusals.py`), and an evaluation is always the same. Training needs nothing of it, so
it goes on without, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from distqat.data import metrics
from distqat.data.patience import Patience
from distqat.data.reading import Reading
from distqat.data.sources import Arrays
from distqat.errors import DataError
from distqat.pipeline.link import Link
from distqat.pipeline.route import HopError
from distqat.roles.refusals import FAILURES

log = logging.getLogger(__name__)

EVALUATION_BATCH = 256
"""Samples of one forward-only batch."""


class Trials:
    """Evaluates the pipeline as it is."""

    def __init__(self, reading: Reading, task: str, microbatches: int) -> None:
        self.fault = ""  # Why none is tried any more; empty while they are.
        self._reading = reading
        self._patience = Patience(log.warning)
        self._task = task
        self._microbatches = microbatches
        self._is_under_way = False  # One has begun on this route, and not ended.
        self._failure = ""  # The last one; empty after a success.
        self._times = 0  # That it came in the same way.

    def __repr__(self) -> str:
        return f"<Trials of {self._task}, {self.fault or f'{self._times} failures'}>"

    async def evaluate(self, link: Link) -> dict[str, float]:
        """The numbers of the task over all held-out samples; none if evaluations are given up, as they are when
        held-out samples cannot be read."""
        if self.fault:
            return {}
        self._is_under_way = True
        sums: dict[str, float] = {}
        total = self._reading.num_held_out
        try:
            for begin in range(0, total, EVALUATION_BATCH):
                end = min(begin + EVALUATION_BATCH, total)
                arrays = await self._patience.read(self._reading.held_out, begin, end)
                add_sums(sums, await link.evaluate(to_tensors(arrays), self._microbatches))
        except DataError as error:
            self._is_under_way = False
            self.fault = f"the held-out samples {begin} to {end} cannot be used: {error.reason}"
            return {}
        self._is_under_way, self._failure, self._times = False, "", 0
        return metrics.evaluation(self._task, sums)

    def left(self) -> None:
        """The route was left in order: what was under way has not failed."""
        self._is_under_way = False

    def broke(self, error: HopError, place: str) -> bool:
        """A route broke; whether an evaluation was under way, which may be what broke it. What the network does is
        tried for ever."""
        if not self._is_under_way:
            return False
        self._is_under_way = False
        if error.kind in FAILURES:
            failure = f"{error.kind} at {place}: {error.reason}"
            self._times = self._times + 1 if failure == self._failure else 1
            self._failure = failure
            if self._times >= FAILURES[error.kind]:
                self.fault = f"evaluations failed {self._times} times in the same way: {failure}"
        return True


def to_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """The arrays of a batch as tensors that share their memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def add_sums(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add up what a task reports."""
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value
