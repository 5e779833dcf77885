"""What a stage at an expert leaves behind for people: metric lines, events, spans of the trace, and log lines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from distqat.averaging.averager import Outcome
from distqat.averaging.committed import Receipt
from distqat.errors import DistqatError
from distqat.events import Kind, Subject
from distqat.ids import PeerId, short
from distqat.pipeline.words import Open
from distqat.roles import status
from distqat.roles.epochs import order_and_attempt
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
        self._events = telemetry.events
        self._stage = stage
        self._route: Subject | None = None  # The present route, as its events have it.

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

    def opened(self, opening: Open) -> None:
        """A route runs through the stage from now on."""
        order, attempt = order_and_attempt(opening.epoch)
        self._route = Subject(stage=self._stage, pipeline=opening.pipeline, epoch=order, attempt=attempt)
        text = f"{self._stage}: a route of pipeline {opening.pipeline} opens at step {opening.step}"
        self._events.record(Kind.ROUTE_OPENED, text, replace(self._route, step=opening.step))

    def closed(self, reason: str) -> None:
        """That route is gone."""
        if self._route is not None:
            text = f"{self._stage}: the route of pipeline {self._route.pipeline} is gone: {reason}"
            self._events.record(Kind.ROUTE_CLOSED, text, self._route)
            self._route = None

    def seated(self, is_taken: bool) -> None:
        """The stage is taken, or given back."""
        kind, what = (Kind.SEAT_TAKEN, "takes") if is_taken else (Kind.SEAT_GIVEN_BACK, "gives back")
        self._events.record(kind, f"{what} {self._stage}", Subject(stage=self._stage))

    def losing(self, mark: Callable[[PeerId, str], None]) -> Callable[[PeerId, str], None]:
        """The same, and it is told: a sibling was lost in a round."""

        def lost(peer: PeerId, reason: str) -> None:
            text = f"{self._stage}: lost {short(peer)} in a round: {reason}"
            self._events.record(Kind.LOST, text, Subject(peer=peer, stage=self._stage, how="round"))
            mark(peer, reason)

        return lost

    def committed(self, receipt: Receipt) -> None:
        """A round was committed, and this expert was in its group."""
        text = f"{self._stage}: round {receipt.round} of {len(receipt.contributors)} siblings, {receipt.seconds:.2f} s"
        lost = f", lost {' '.join(map(short, receipt.lost))}" if receipt.lost else ""
        told = Subject(
            stage=self._stage,
            round=receipt.round,
            samples=receipt.samples,
            bytes=receipt.bytes,
            seconds=receipt.seconds,
        )
        self._events.record(Kind.ROUND_COMMITTED, text + lost, told)
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
        text = f"{self._stage}: the contribution of {short(peer)} is refused: {reason}"
        self._events.record(Kind.CONTRIBUTION_REFUSED, text, Subject(stage=self._stage, peer=peer))

    def failed(self, error: DistqatError) -> None:
        """A round came to nothing."""
        log.warning("%s: %s; the local progress is kept", self._stage, error)
        self._telemetry.record("failed round", {"stage": self._stage, "reason": error.reason}, {})
        subject = Subject(stage=self._stage, how=type(error).__name__)
        self._events.record(Kind.ROUND_FAILED, f"{self._stage}: {error.reason}", subject)

    def caught_up(self, outcome: Outcome) -> None:
        """This expert had missed rounds, and has what they committed now."""
        missed = outcome.state.round - outcome.before.round
        how = "by replaying them; the local progress is kept" if outcome.is_replayed else "with the state of a sibling"
        log.info("%s: caught up with %d rounds %s", self._stage, missed, how)
        values = {"rounds": float(missed), "replayed": float(outcome.is_replayed)}
        self._telemetry.record("caught up", {"stage": self._stage}, values)
        subject = Subject(stage=self._stage, round=outcome.state.round)
        self._events.record(Kind.CAUGHT_UP, f"{self._stage}: caught up with {missed} rounds {how}", subject)
