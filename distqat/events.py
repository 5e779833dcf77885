"""What happened at a daemon, as typed events: few, and enough to see afterwards how a failover went. Pure.

A kind and the fields that it needs are one line of `Kind`; whoever sees it happen records it (`event_log.py`):

    telemetry.events.record(Kind.LOST, "lost 1a2b3c4d: its process is gone", Subject(peer=peer, how="silence"))

Events of several daemons are shown in the order of their wall clocks, which may be apart. That is for people: nothing
is ever decided by it. Within one daemon the serials tell the order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_TEXT = 400
"""Characters of a sentence; what is longer is cut."""


class Kind(StrEnum):
    """Everything that may happen: its name, then the fields of `Subject` that it cannot do without."""

    needs: tuple[str, ...]

    def __new__(cls, word: str, *needs: str) -> Kind:
        """A member of that name."""
        kind = str.__new__(cls, word)
        kind._value_ = word
        kind.needs = needs
        return kind

    # The daemon.
    STARTED = "started"
    JOINED = "joined"
    RUN_LEARNED = "run learned", "run"
    ROLE_TAKEN = "role taken", "role"
    ROLE_DROPPED = "role dropped", "role"
    ROLE_FAILED = "role failed", "role"
    LEAVING = "leaving"
    ENDED = "ended"

    # The client.
    STANDING_BY = "standing by", "peer"
    TAKING_OVER = "taking over", "peer"
    PLANNING = "planning"
    BOOKS_RESTORED = "books restored", "samples"
    LOST = "lost", "peer", "how"
    BACK = "back", "peer"
    ASSIGNED = "assigned", "peer", "stage"
    FORMED = "formed", "pipeline", "epoch", "peer"
    ADOPTED = "adopted", "pipeline", "epoch", "peer"
    DISSOLVED = "dissolved", "pipeline"
    ACTION_FAILED = "action failed", "how"
    FENCED = "fenced", "pipeline"
    DATA_SERVER_RESTARTED = "data server restarted", "how"

    # The expert.
    SEAT_TAKEN = "seat taken", "stage"
    STATE_OBTAINED = "state obtained", "stage", "how", "round", "seconds"
    SEAT_GIVEN_BACK = "seat given back", "stage"
    FOLLOWING = "following", "stage"
    PROMOTED = "promoted", "stage"
    CHECKPOINT_WRITTEN = "checkpoint written", "stage", "round"
    CHECKPOINT_FAILED = "checkpoint failed", "stage", "round"
    CHECKPOINT_REFUSED = "checkpoint refused"
    ROUTE_OPENED = "route opened", "stage", "pipeline", "epoch", "attempt", "step"
    ROUTE_CLOSED = "route closed", "stage", "pipeline", "epoch", "attempt"
    ROUND_COMMITTED = "round committed", "stage", "round", "seconds"
    ROUND_FAILED = "round failed", "stage"
    CAUGHT_UP = "caught up", "stage", "round"
    CONTRIBUTION_REFUSED = "contribution refused", "stage", "peer"

    # The mirror.
    MIRRORING = "mirroring", "stage"

    # The trainer.
    EPOCH_OPENED = "epoch opened", "pipeline", "epoch", "attempt", "step"
    HOP_BROKE = "hop broke", "pipeline", "epoch", "attempt", "step", "peer", "how"
    STEP_REPLAYED = "step replayed", "pipeline", "step"
    BATCH_SKIPPED = "batch skipped", "pipeline", "step", "samples"
    EVALUATIONS_ENDED = "evaluations ended", "pipeline", "step"
    RECOVERED = "recovered", "pipeline", "step", "seconds"
    PIPELINE_FINISHED = "pipeline finished", "pipeline", "step"
    PIPELINE_STOPPED = "pipeline stopped", "pipeline", "step"


TROUBLE = frozenset(
    {
        Kind.ROLE_FAILED,
        Kind.LOST,
        Kind.ACTION_FAILED,
        Kind.ROUND_FAILED,
        Kind.CONTRIBUTION_REFUSED,
        Kind.CHECKPOINT_FAILED,
        Kind.CHECKPOINT_REFUSED,
        Kind.HOP_BROKE,
        Kind.BATCH_SKIPPED,
        Kind.EVALUATIONS_ENDED,
        Kind.DATA_SERVER_RESTARTED,
    }
)
"""Kinds that are no part of an ordinary life."""

RELIEF = frozenset({Kind.BACK, Kind.RECOVERED, Kind.CAUGHT_UP})
"""Kinds that end trouble."""


@dataclass(frozen=True)
class Subject:
    """What an event is about; a field is None where it has nothing to do with it."""

    peer: str | None = None
    """Another peer: who was lost, is assigned, drives the pipeline, stands at the broken hop."""
    role: str | None = None
    run: str | None = None
    stage: str | None = None
    """By name: mlp/1."""
    pipeline: str | None = None
    epoch: int | None = None
    """Of the client's order; the `attempt` counts how often a trainer opened its route."""
    attempt: int | None = None
    step: int | None = None
    round: int | None = None
    how: str | None = None
    """In a word or two: by which error, in which way."""
    samples: int | None = None
    bytes: int | None = None
    seconds: float | None = None

    def told(self) -> dict[str, str | int | float]:
        """The fields that are not None."""
        pairs = ((name, getattr(self, name)) for name in _FIELDS)
        return {name: value for name, value in pairs if value is not None}


_FIELDS = tuple(field.name for field in dataclasses.fields(Subject))
_WORDS = frozenset({"peer", "role", "run", "stage", "pipeline", "how"})
NOTHING = Subject()


@dataclass(frozen=True)
class Event:
    """One thing that happened at one daemon. Raises ValueError when the kind needs a field that is not there."""

    serial: int
    """Grows from event to event at this daemon, over its restarts too."""
    monotonic: float
    """Seconds of the daemon's monotonic clock, which has nothing in common with that of others."""
    wall: float
    """Seconds since 1970 by the daemon's wall clock."""
    daemon: str
    kind: Kind
    text: str
    """One sentence for people."""
    subject: Subject = NOTHING

    def __post_init__(self) -> None:
        missing = [name for name in self.kind.needs if getattr(self.subject, name) is None]
        if missing:
            raise ValueError(f"an event '{self.kind}' without {', '.join(missing)}")

    def is_about(self, peer: str) -> bool:
        """Whether it happened at this peer or to it; the beginning of a peer's id is enough."""
        return self.daemon.startswith(peer) or (self.subject.peer or "").startswith(peer)

    def line(self) -> str:
        """As one JSON object, the fields of the subject beside the others."""
        own = {"serial": self.serial, "wall": self.wall, "monotonic": self.monotonic, "daemon": self.daemon}
        return json.dumps({**own, "kind": str(self.kind), **self.subject.told(), "text": self.text})

    @classmethod
    def parse(cls, line: str) -> Event:
        """From such a line. Raises ValueError for what is none, and for a kind that is unknown here."""
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("not an object")
        return of_row(row)


def of_row(row: Mapping[str, Any]) -> Event:
    """An event whose fields came from somewhere else. Raises ValueError."""
    try:
        subject = Subject(**{name: _checked(name, row[name]) for name in _FIELDS if row.get(name) is not None})
        return Event(
            serial=int(row["serial"]),
            monotonic=float(row["monotonic"]),
            wall=float(row["wall"]),
            daemon=sentence(str(row["daemon"])),
            kind=Kind(row["kind"]),
            text=sentence(str(row["text"])),
            subject=subject,
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not an event: {error!r}") from None


def sentence(text: str) -> str:
    """One line of what can be printed, and not too long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def merged(parts: Iterable[Iterable[Event]]) -> list[Event]:
    """Events of several daemons in one order, each once: by wall clock, and within a daemon never against its serials.

    Clocks that were set back between two events of one daemon therefore do not turn these around.
    """
    known = {(event.daemon, event.serial): event for part in parts for event in part}
    latest: dict[str, float] = {}
    places: list[tuple[float, str, int]] = []
    for daemon, serial in sorted(known):
        latest[daemon] = max(known[daemon, serial].wall, latest.get(daemon, 0.0))
        places.append((latest[daemon], daemon, serial))
    return [known[daemon, serial] for _, daemon, serial in sorted(places)]


def _checked(name: str, value: Any) -> Any:
    if name in _WORDS:
        return sentence(str(value))
    return float(value) if name == "seconds" else int(value)
