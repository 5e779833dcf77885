"""Events of a swarm: asked of all its daemons, or read from their files; then put into one order and shown."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from distqat.errors import ConfigError, DistqatError, MessageError, UnreachableError
from distqat.event_log import KEPT_EVENTS, read_events
from distqat.events import RELIEF, TROUBLE, Event, Kind, merged
from distqat.ids import Endpoint, short
from distqat.roles.events.messages import MAX_EVENTS
from distqat.roles.remote import Remote
from distqat.roles.status import SwarmStatus

CALL_SECONDS = 3.0
"""A daemon that does not answer within this long is left out."""

FOLLOW_SECONDS = 1.0
"""Between two looks."""

CONCURRENCY = 32
"""Daemons that are asked at the same time."""

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Wanted:
    """Which events are to be shown."""

    moment: float = 0.0
    """Those from this moment on; seconds since 1970."""
    last: int = 0
    """At most so many, the last ones; 0: all."""
    kinds: frozenset[Kind] = frozenset()
    """Only these; empty: all."""
    about: str = ""
    """Only those of or about a peer whose id begins so."""

    @classmethod
    def parse(cls, since: str, kinds: Sequence[str], about: str, now: float) -> Wanted:
        """From the words of a command. Raises ConfigError."""
        moment, last = parse_since(since, now)
        return cls(moment, last, frozenset(map(parse_kind, kinds)), about)

    def choose(self, events: Sequence[Event]) -> list[Event]:
        """Those of these."""
        chosen = [event for event in events if self._is_wanted(event)]
        return chosen[-self.last :] if self.last else chosen

    def _is_wanted(self, event: Event) -> bool:
        is_kind = not self.kinds or event.kind in self.kinds
        return is_kind and event.wall >= self.moment and (not self.about or event.is_about(self.about))


def parse_since(text: str, now: float) -> tuple[float, int]:
    """Read `10m` (so long ago), `2026-11-23T14:00` (a moment) or `50` (the last 50): a moment, and how many at most.

    Raises ConfigError.
    """
    if not text:
        return 0.0, 0
    if text.isdecimal() and int(text):
        return 0.0, int(text)
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if ago is not None:
        return now - float(ago[1]) * UNITS[ago[2]], 0
    try:
        return datetime.fromisoformat(text).timestamp(), 0
    except (ValueError, OverflowError, OSError):
        why = "write how long ago (90s, 10m, 2h, 1d), a moment (2026-11-23T14:00), or how many (50)"
        raise ConfigError(f"'{text}' is no time; {why}") from None


def parse_kind(text: str) -> Kind:
    """The kind of that name, with blanks or dashes between its words. Raises ConfigError."""
    try:
        return Kind(text.replace("-", " "))
    except ValueError:
        raise ConfigError(f"there is no kind of event '{text}'; kinds are: {', '.join(Kind)}") from None


@dataclass
class Listener:
    """Asks the daemons of a swarm for their events, each for those that it has not told yet."""

    remote: Remote
    silent: dict[str, str] = field(default_factory=dict)  # Why a daemon did not answer the last time, by its id.
    _peers: dict[str, Endpoint] = field(default_factory=dict)  # Who is asked.
    _seen: dict[str, int] = field(default_factory=dict)  # Serial of the last event that each has told.

    async def look(self) -> list[Event]:
        """What is new at all daemons that the entry daemon knows now, in one order. Raises UnreachableError and others
        when that does not answer."""
        return await self.ask(await self.remote.swarm())

    async def ask(self, swarm: SwarmStatus) -> list[Event]:
        """What is new at these daemons; who does not answer is in `silent`."""
        self._peers = {peer.peer: peer.endpoint for peer in swarm.peers if peer.reachable}
        self.silent = {peer.peer: peer.reason for peer in swarm.peers if not peer.reachable}
        return await self.ask_again()

    async def ask_again(self) -> list[Event]:
        """What is new at the daemons that were asked before."""
        room = asyncio.Semaphore(CONCURRENCY)

        async def ask(peer: str, endpoint: Endpoint) -> list[Event]:
            async with room:
                return await self._ask(peer, endpoint)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(*known)) for known in sorted(self._peers.items())]
        return merged(task.result() for task in asked)

    async def _ask(self, peer: str, endpoint: Endpoint) -> list[Event]:
        remote, found = self.remote.beside(endpoint, CALL_SECONDS), list[Event]()
        try:
            # As many pages as a daemon can have; what comes while they are turned is for the next look.
            for _ in range(KEPT_EVENTS // MAX_EVENTS):
                reply = await remote.events(self._seen.get(peer, 0))
                if reply.daemon != peer:
                    raise MessageError(f"{endpoint} answers as another peer, {short(reply.daemon)}")
                found += reply.read()
                self._seen[peer] = found[-1].serial if found else self._seen.get(peer, 0)
                if not reply.more:
                    break
            self.silent.pop(peer, None)
        except DistqatError as error:
            self.silent[peer] = error.reason
        return found


async def collect(remote: Remote) -> tuple[list[Event], dict[str, str]]:
    """All that the daemons of the swarm keep, in one order; and who did not answer, with the reason. Raises RpcError
    when the asked daemon itself does not answer, UnreachableError when nobody tells anything."""
    listener = Listener(remote)
    events = await listener.look()
    if not events and listener.silent:
        raise UnreachableError(f"nobody tells events: {'; '.join(listener.silent.values())}")
    return events, listener.silent


async def follow(remote: Remote, wanted: Wanted, as_json: bool) -> None:
    """Show what there is, then what comes, until interrupted. Who falls silent is named once, and asked on."""
    listener, told = Listener(remote), dict[str, str]()
    show(wanted.choose(await listener.look()), as_json)
    while True:
        told = _tell_silent(listener.silent, told)
        await asyncio.sleep(FOLLOW_SECONDS)
        try:
            events = await listener.look()
        except DistqatError as error:
            # The others may live on; they are asked as they are known.
            events = await listener.ask_again()
            listener.silent[str(remote.endpoint)] = error.reason
        show(Wanted(kinds=wanted.kinds, about=wanted.about).choose(events), as_json)


def from_files(paths: Sequence[Path]) -> list[Event]:
    """The events of dead daemons, from files and folders, in one order. Raises ConfigError. Lines that cannot be read
    are counted on standard error."""
    found = [read_events(path) for path in paths]
    unread = sum(part.unread for part in found)
    if unread:
        typer.echo(f"distqatctl: {unread} lines are torn or unknown here, and left out", err=True)
    return merged(part.events for part in found)


def show(events: Sequence[Event], as_json: bool) -> None:
    """One line each."""
    if as_json:
        for event in events:
            typer.echo(event.line())
        return
    console = Console(highlight=False)
    for event in events:
        console.print(line_of(event), soft_wrap=True)


def line_of(event: Event) -> Text:
    """When, where, what, and the sentence."""
    when = datetime.fromtimestamp(event.wall).strftime("%m-%d %H:%M:%S.%f")[:-3]
    style = "red" if event.kind in TROUBLE else "green" if event.kind in RELIEF else "cyan"
    return Text.assemble((when, "dim"), f"  {short(event.daemon):8}  ", (f"{event.kind:20}", style), f"  {event.text}")


def tell_silent(silent: dict[str, str]) -> None:
    """Who is not in what was shown, on standard error."""
    for peer, reason in sorted(silent.items()):
        typer.echo(f"distqatctl: not in it: {peer if ':' in peer else short(peer)}: {reason}", err=True)


def _tell_silent(silent: dict[str, str], told: dict[str, str]) -> dict[str, str]:
    """Those who were not silent before; and who answers again."""
    tell_silent({peer: reason for peer, reason in silent.items() if peer not in told})
    for peer in sorted(told.keys() - silent.keys()):
        typer.echo(f"distqatctl: answers again, or is forgotten: {peer if ':' in peer else short(peer)}", err=True)
    return dict(silent)
