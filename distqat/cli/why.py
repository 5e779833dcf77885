"""Why a peer does what it does: what it says of itself, what its client and the others say of it, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.text import Text

from distqat.cli.events import CALL_SECONDS, Listener, line_of
from distqat.errors import ConfigError
from distqat.events import Event, Kind
from distqat.ids import Endpoint, short
from distqat.roles.remote import Remote
from distqat.roles.status import ExpertStatus, PeerStatus, PipelineStatus, RoleStatus, SwarmStatus

SHOWN_EVENTS = 10


@dataclass(frozen=True)
class Inquiry:
    """What was found out about one peer."""

    peer: str
    """Its id; empty when only its address is known."""
    status: PeerStatus | None
    """What it says of itself, or that it does not answer; None when the asked daemon does not know it any more."""
    swarm: SwarmStatus
    events: tuple[Event, ...]
    """Of it and about it, in the order of wall clocks."""

    @property
    def is_healthy(self) -> bool:
        """It answers, gets on with its work, none of its roles has failed and no pipeline that it drives is broken."""
        status = self.status
        return (
            status is not None
            and status.reachable
            and not status.idle_seconds
            and not any(role.phase == "failed" for role in status.roles)
            and not any(line.phase == "broken" for role in status.roles for line in role.pipelines)
        )


async def inquire(remote: Remote, whom: str) -> Inquiry:
    """Ask the swarm about a peer, named by the beginning of its id or by its address. Raises ConfigError for one that
    nobody knows, RpcError when the asked daemon or a stranger's address does not answer."""
    swarm = await remote.swarm()
    status, peer = find(swarm, whom)
    if status is None and not peer:
        # A stranger to the asked daemon: perhaps it waits to get in.
        status = await remote.beside(Endpoint.parse(whom), CALL_SECONDS).status()
        peer, swarm = status.peer, SwarmStatus((*swarm.peers, status))
    events = await Listener(remote).ask(swarm)
    return Inquiry(peer, status, swarm, tuple(event for event in events if event.is_about(peer)))


def find(swarm: SwarmStatus, whom: str) -> tuple[PeerStatus | None, str]:
    """The peer that is meant, and its id: None for one that was lost, and no id for an address that is not known here.

    Raises ConfigError.
    """
    if ":" in whom:
        endpoint = Endpoint.parse(whom)
        found = next((peer for peer in swarm.peers if peer.endpoint == endpoint), None)
        return found, found.peer if found is not None else ""
    known: dict[str, PeerStatus | None] = {}
    run = swarm.run()
    if run is not None:
        known |= dict.fromkeys(loss.peer for loss in run.losses)
    known |= {peer.peer: peer for peer in swarm.peers}
    chosen = [peer for peer in known if whom and peer.startswith(whom)]
    if len(chosen) != 1:
        what = f"no peer '{whom}'" if not chosen else f"several peers begin with '{whom}'"
        raise ConfigError(f"{what}: this swarm has {', '.join(map(short, sorted(chosen or known)))}")
    return known[chosen[0]], chosen[0]


def report(inquiry: Inquiry) -> None:
    """Print it."""
    console = Console(highlight=False)
    for sentence in sentences(inquiry):
        console.print(Text(sentence), soft_wrap=True)
    if inquiry.events:
        console.print(Text("its last events, and what others tell of it:", "dim"))
    for event in inquiry.events[-SHOWN_EVENTS:]:
        console.print(Text("  ").append_text(line_of(event)), soft_wrap=True)


def sentences(inquiry: Inquiry) -> list[str]:
    """What is known, the most important first."""
    status, name = inquiry.status, short(inquiry.peer)
    if status is None:
        return [f"{name} is not in the swarm any more.", *_absent(inquiry)]
    if not status.reachable:
        return [f"{name} at {status.endpoint} does not answer: {status.reason}", *_absent(inquiry), *_lease(inquiry)]
    run = f"works for run {status.run}" if status.run is not None else "knows no run yet"
    said = [f"{name} at {status.endpoint} runs distqat {status.version} and {run}: {status.reason}"]
    for role in status.roles:
        said += _role(role)
    if not status.roles:
        said.append("it holds no role")
    return [*said, *_places(inquiry), *_lease(inquiry)]


def _role(role: RoleStatus) -> list[str]:
    said = [f"{role.role} is {role.phase}: {role.reason}"]
    if role.expert is not None and role.expert.seated:
        said.append(f"  {_stage(role.expert)}")
    said += [f"  drives pipeline {line.pipeline}, which is {line.phase}: {line.reason}" for line in role.pipelines]
    run = role.run
    if run is not None and run.budget:
        open_ = f"{run.open} more are claimed"
        said.append(f"  keeps the books: {run.committed} of {run.budget} samples are committed, {open_}")
    return said


def _stage(expert: ExpertStatus) -> str:
    name = expert.stage_name or f"stage {expert.stage}"
    if not expert.ready:
        return f"is given {name}, and does not have its state yet"
    pinned = ", and was started for that stage" if expert.pinned else ""
    facts = f"step {expert.step}, {expert.round} rounds committed, digest {expert.digest[:8]}"
    return f"holds {name}{pinned}: {facts}"


def _places(inquiry: Inquiry) -> list[str]:
    """Where it stands on routes."""
    said = []
    for line in inquiry.swarm.pipelines():
        places = [place for place, seat in enumerate(line.route, start=1) if seat.peer == inquiry.peer]
        if places:
            chain = " > ".join(f"[{short(s.peer)}]" if s.peer == inquiry.peer else short(s.peer) for s in line.route)
            where = f"is number {places[0]} of {len(line.route)} on the route of pipeline {line.pipeline}"
            driver = _driver(inquiry.swarm, line)
            said.append(f"{where}, epoch {line.epoch}: {driver} > {chain}; it is {line.phase}: {line.reason}")
    return said


def _driver(swarm: SwarmStatus, line: PipelineStatus) -> str:
    drivers = (
        peer for peer in swarm.peers for role in peer.roles for own in role.pipelines if own.pipeline == line.pipeline
    )
    found = next(drivers, None)
    return f"trainer {short(found.peer)}" if found is not None else "no trainer"


def _lease(inquiry: Inquiry) -> list[str]:
    """How its client sees it."""
    status, run, client = inquiry.status, inquiry.swarm.run(), _client(inquiry.swarm)
    if status is None or run is None or client is None:
        return []
    lease = next((lease for lease in run.leases if lease.peer == inquiry.peer), None)
    stuck = [f"its device has been busy with one piece of work for {status.idle_seconds:.1f} s"]
    said = stuck if status.idle_seconds else []
    if lease is not None:
        over = f"it is over after {lease.seconds:.1f} s"
        said.append(f"its lease was renewed {lease.age:.1f} s ago, as client {short(client.peer)} sees it; {over}")
    elif status.role("expert") is not None or status.role("trainer") is not None or not status.reachable:
        said.append(f"client {short(client.peer)} holds no lease of it")
    return said


def _client(swarm: SwarmStatus) -> PeerStatus | None:
    """The daemon that keeps the books."""
    run = swarm.run()
    return next((peer for peer in swarm.peers for role in peer.roles if run is not None and role.run is run), None)


def _absent(inquiry: Inquiry) -> list[str]:
    """What the others say of one that does not answer."""
    lost = [event for event in inquiry.events if event.kind == Kind.LOST and event.subject.peer == inquiry.peer]
    told = [f"{short(event.daemon)} lost it at {_clock(event)} ({event.subject.how}): {event.text}" for event in lost]
    run = inquiry.swarm.run()
    losses = [f"its client lost it: {loss.reason}" for loss in (run.losses if run else ()) if loss.peer == inquiry.peer]
    return _unlike(told) or losses[-1:] or ["nobody has told of its loss yet"]


def _unlike(sentences: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(sentences))[-SHOWN_EVENTS:]


def _clock(event: Event) -> str:
    return datetime.fromtimestamp(event.wall).strftime("%H:%M:%S")
