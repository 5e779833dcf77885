"""What the rounds of a stage leave behind for people: metric lines, spans of the trace, and log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from distqat.averaging.averager import Outcome
from distqat.averaging.committed import Receipt
from distqat.errors import DistqatError
from distqat.ids import PeerId, short
from distqat.roles import status
from distqat.telemetry import Telemetry
from distqat.timeline import BESIDE, ROUND, Timeline

log = logging.getLogger(__name__)


def told(receipt: Receipt) -> status.Receipt:
    """A receipt as it is shown."""
    return status.Receipt(
        round=receipt.round,
        contributors=receipt.contributors,
        samples=receipt.samples,
        bytes=receipt.bytes,
        seconds=receipt.seconds,
        digest=receipt.digest,
        lost=receipt.lost,
        fragments=receipt.fragments,
        codec=receipt.codec,
        bits=receipt.bits,
        clipped=receipt.clipped,
        refused=tuple(f"{short(peer)}: {reason}" for peer, reason in receipt.refused),
    )


class Journal:
    """Of one stage at one expert."""

    def __init__(self, telemetry: Telemetry, stage: str) -> None:
        self.timeline: Timeline | None = None  # That of the present route; None between routes.
        self._telemetry = telemetry
        self._stage = stage

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Within, training waits for a round."""
        if self.timeline is None:
            yield
            return
        with self.timeline.span(ROUND):
            yield

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within, a round runs and steps go on; it is drawn for the route that there is at its end."""
        began = self._telemetry.timelines.clock()
        yield
        if self.timeline is not None:
            self.timeline.add(ROUND, began, self.timeline.clock(), way=BESIDE)

    def committed(self, receipt: Receipt) -> None:
        """A round was committed, and this expert was in its group."""
        labels = {"stage": self._stage, "digest": receipt.digest, "codec": receipt.codec}
        values: dict[str, float] = {
            "round": receipt.round,
            "contributors": len(receipt.contributors),
            "samples": receipt.samples,
            "bytes": receipt.bytes,
            "bits": receipt.bits,
            "seconds": receipt.seconds,
            "lost": len(receipt.lost),
            "clipped": len(receipt.clipped),
            "refused": len(receipt.refused),
        }
        self._telemetry.record("round", labels, values)

    def refused(self, peer: PeerId, reason: str) -> None:
        """A contribution to a round was not taken; it may be the own one."""
        labels = {"stage": self._stage, "peer": peer, "reason": reason}
        self._telemetry.record("refused contribution", labels, {})

    def failed(self, error: DistqatError) -> None:
        """A round came to nothing."""
        log.warning("%s: %s; the local progress is kept", self._stage, error)
        self._telemetry.record("failed round", {"stage": self._stage, "reason": error.reason}, {})

    def caught_up(self, outcome: Outcome) -> None:
        """This expert had missed rounds, and has what they committed now."""
        missed = outcome.state.round - outcome.before.round
        how = "by replaying them; the local progress is kept" if outcome.is_replayed else "with the state of a sibling"
        log.info("%s: caught up with %d rounds %s", self._stage, missed, how)
        values = {"rounds": float(missed), "replayed": float(outcome.is_replayed)}
        self._telemetry.record("caught up", {"stage": self._stage}, values)
