"""What daemons write down is enough to see afterwards how a failover went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from distqat.cli.events import collect, from_files
from distqat.events import TROUBLE, Event, Kind
from distqat.ids import Endpoint, short
from distqat.roles.remote import Remote
from tests.sim.swarm import PORT, World, open_world, peer_of, steps, training
from tests.support import run_virtual

pytestmark = [pytest.mark.sim, pytest.mark.timeout(120)]


async def told(world: World) -> Sequence[Event]:
    """As `distqatctl events` asks."""
    remote = Remote(world.network.transport("observer"), Endpoint("head", PORT), seconds=20.0)
    events, silent = await collect(remote)
    assert not silent
    return events


def first(events: Sequence[Event], kind: Kind, after: int = 0, **fields: object) -> int:
    """Where the first event of that kind with these fields stands, at `after` or later."""
    for place, event in enumerate(events):
        if place >= after and event.kind == kind and event.subject.told().items() >= fields.items():
            return place
    lines = "\n".join(f"{event.kind}: {event.text}" for event in events[after:])
    raise AssertionError(f"no event '{kind}' with {fields} after number {after}; there are:\n{lines}")


def check_failover(events: Sequence[Event], victim: str, spare: str, pipeline: str) -> None:
    """The whole story of a kill in its order: the loss, the new order, the opened route, the first commit after it."""
    broke = first(events, Kind.HOP_BROKE, pipeline=pipeline, peer=victim)
    lost = first(events, Kind.LOST, peer=victim, how="broken connection")
    assert events[lost].text.startswith(f"lost {short(victim)}: ")
    formed = first(events, Kind.FORMED, after=lost, pipeline=pipeline)
    assert short(spare) in events[formed].text
    epoch = events[formed].subject.epoch
    assert epoch is not None
    assert epoch > 1
    taken = first(events, Kind.ROUTE_OPENED, after=formed, pipeline=pipeline, epoch=epoch, stage="mlp/1")
    assert events[taken].daemon == spare
    opened = first(events, Kind.EPOCH_OPENED, after=formed, pipeline=pipeline, epoch=epoch)
    recovered = first(events, Kind.RECOVERED, after=opened, pipeline=pipeline)
    assert broke < recovered
    assert taken < recovered
    assert (events[recovered].subject.step or 0) > (events[opened].subject.step or 0)
    assert 0.0 < (events[recovered].subject.seconds or 0.0) < 60.0


def test_a_kill_can_be_reconstructed_from_events_and_from_files(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "plan.max_pipelines=1") as world:
            await world.start("head", "client")
            for host, stage in (("alice", 0), ("bob", 1)):
                await world.start(host, "expert", join="head", stage=stage)
            before = await world.until("head", lambda s: training(s) and steps(s) > 10)
            await world.start("spare", "expert", join="head", stage=1)
            ready = await world.until("head", lambda s: [e.ready for _, e in s.experts()] == [True] * 3)
            victim, spare = peer_of(ready, "bob").peer, peer_of(ready, "spare").peer
            (line,) = training(before)
            await world.crash("bob")
            await world.until("head", lambda s: training(s) and steps(s) > steps(ready) + 10)
            check_failover(await told(world), victim, spare, line.pipeline)

    run_virtual(scenario(), debug=False)
    # Afterwards the files tell the same, and of the dead one too; none of them was closed when it died.
    events = from_files([tmp_path / "logs" / "sim"])
    assert len({event.daemon for event in events}) == 4
    victim = next(event.subject.peer for event in events if event.kind == Kind.LOST) or ""
    spare = next(e.daemon for e in reversed(events) if e.kind == Kind.ROUTE_OPENED and e.subject.stage == "mlp/1")
    pipeline = next(event.subject.pipeline for event in events if event.kind == Kind.FORMED) or ""
    check_failover(events, victim, spare, pipeline)
    told_itself = {event.kind for event in events if event.daemon == victim}
    assert told_itself >= {Kind.STARTED, Kind.JOINED, Kind.RUN_LEARNED, Kind.ROLE_TAKEN, Kind.SEAT_TAKEN}
    assert told_itself >= {Kind.STATE_OBTAINED, Kind.ROUTE_OPENED, Kind.ROUND_COMMITTED}
    obtained = events[first(events, Kind.STATE_OBTAINED, stage="mlp/1", how="caught up")]
    assert obtained.daemon == spare
    assert (obtained.subject.bytes or 0) > 0


def test_a_life_in_good_order_is_told_from_the_start_to_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_world(tmp_path, "train.epochs=1") as world:
            await world.start("head", "client")
            for host in ("alice", "bob"):
                await world.start(host, "expert", join="head")
            await world.until("head", lambda s: (run := s.run()) and run.finished, 300)
            for host in ("alice", "head"):
                await world.stop(host)

    run_virtual(scenario(), debug=False)
    events = from_files([tmp_path / "logs" / "sim"])
    assert not [event for event in events if event.kind in TROUBLE]
    by_daemon: dict[str, list[Kind]] = {}
    for event in events:
        by_daemon.setdefault(event.daemon, []).append(event.kind)
    assert len(by_daemon) == 3
    assert all(kinds[0] == Kind.STARTED for kinds in by_daemon.values())
    left = [kinds for kinds in by_daemon.values() if Kind.LEAVING in kinds]
    assert len(left) == 2
    for kinds in left:
        assert kinds[-1] == Kind.ENDED
        assert kinds.count(Kind.ROLE_TAKEN) == kinds.count(Kind.ROLE_DROPPED)
    head = events[first(events, Kind.PLANNING)].daemon
    story = [kind for kind in by_daemon[head] if kind in (Kind.FORMED, Kind.EPOCH_OPENED, Kind.PIPELINE_FINISHED)]
    assert story == [Kind.FORMED, Kind.EPOCH_OPENED, Kind.PIPELINE_FINISHED]
