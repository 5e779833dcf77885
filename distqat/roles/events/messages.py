"""A daemon's events on the wire: the messages of `Control.Events`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from distqat.errors import MessageError
from distqat.event_log import EventLog
from distqat.events import Event, Subject, of_row
from distqat.pb import events_pb2 as pb
from distqat.roles.messages import SERVICE
from distqat.rpc import mirror
from distqat.rpc.transport import Method

EVENTS = Method(SERVICE, "Events")

MAX_EVENTS = 1024
"""Events in one answer."""


@dataclass(frozen=True)
class EventsRequest:
    """Asks for the events after a serial; `most` = 0: as many as are told at once."""

    after: int
    most: int = 0

    def encode(self) -> bytes:
        """As bytes."""
        return mirror.encode(self, pb.EventsRequest)

    @classmethod
    def decode(cls, data: bytes) -> EventsRequest:
        """From bytes. Raises MessageError."""
        return mirror.decode(cls, data, pb.EventsRequest)


@dataclass(frozen=True)
class EventLine:
    """One event on the wire, where its daemon is said once for all."""

    serial: int
    monotonic: float
    wall: float
    kind: str
    text: str
    subject: Subject


@dataclass(frozen=True)
class EventsReply:
    """Events of one daemon, oldest first; `more`: there are others after them."""

    daemon: str
    events: tuple[EventLine, ...]
    more: bool

    @classmethod
    def of(cls, events: EventLog, wanted: EventsRequest) -> EventsReply:
        """What a daemon's log says."""
        found = events.since(wanted.after)
        most = min(wanted.most or MAX_EVENTS, MAX_EVENTS)
        return cls(events.daemon, tuple(_line(event) for event in found[:most]), len(found) > most)

    def read(self) -> Sequence[Event]:
        """The events themselves. Raises MessageError for one of a kind that is unknown here."""
        try:
            return [of_row(self._row(line)) for line in self.events]
        except ValueError as error:
            raise MessageError(f"{self.daemon} tells an event that is none here: {error}") from None

    def encode(self) -> bytes:
        """As bytes."""
        return mirror.encode(self, pb.EventsReply)

    @classmethod
    def decode(cls, data: bytes) -> EventsReply:
        """From bytes. Raises MessageError."""
        return mirror.decode(cls, data, pb.EventsReply)

    def _row(self, line: EventLine) -> dict[str, object]:
        own = {field.name: getattr(line, field.name) for field in dataclasses.fields(line) if field.name != "subject"}
        return {**line.subject.told(), **own, "daemon": self.daemon}


def _line(event: Event) -> EventLine:
    return EventLine(event.serial, event.monotonic, event.wall, str(event.kind), event.text, event.subject)
