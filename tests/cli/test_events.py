"""Events of a swarm: from its daemons or from files, chosen, merged and shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distqat.cli import events as told
from distqat.cli.distqatctl import app
from distqat.cli.events import Listener, Wanted, collect, follow, line_of, parse_kind, parse_since
from distqat.errors import ConfigError, UnreachableError
from distqat.event_log import EventLog, file_name
from distqat.events import Event, Kind, Subject
from distqat.ids import Endpoint
from distqat.roles import messages
from distqat.roles.events.messages import EVENTS, EventsReply, EventsRequest
from distqat.roles.remote import Remote
from distqat.roles.status import PeerStatus
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service
from tests.support import run_virtual

PORT = 7000
ALICE, BOB, CAROL = "a" * 40, "b" * 40, "c" * 40
NOW = 1_700_000_000.0
LOST = Event(3, 0.0, NOW, ALICE, Kind.LOST, "lost bbbbbbbb: gone", Subject(peer=BOB, how="silence"))


class Swarm:
    """Daemons that tell events; the first one knows all the others."""

    def __init__(self) -> None:
        self.network = Network(seed=1)
        self.logs = {peer: EventLog(peer, wall=self._tick) for peer in (ALICE, BOB, CAROL)}
        self.asked: list[int] = []  # Serials that daemons were asked for.
        self._wall = NOW

    def _tick(self) -> float:
        self._wall += 1.0
        return self._wall

    def say(self, peer: str, text: str) -> None:
        self.logs[peer].record(Kind.STARTED, text)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Remote]:
        """All of them serve; the entry daemon, as a command asks it."""
        async with AsyncExitStack() as stack:
            for peer in self.logs:
                transport = self.network.transport(peer[0])
                server = await stack.enter_async_context(transport.serve(Endpoint(peer[0], PORT)))
                server.add(self._service(peer))
            yield Remote(self.network.transport("observer"), Endpoint("a", PORT), 5.0)

    def _service(self, peer: str) -> Service:
        async def swarm(request: bytes, caller: Caller) -> bytes:
            peers = tuple(PeerStatus(name, Endpoint(name[0], PORT)) for name in self.logs)
            return messages.encode(messages.SwarmReply(peers))

        async def events(request: bytes, caller: Caller) -> bytes:
            wanted = EventsRequest.decode(request)
            self.asked.append(wanted.after)
            return EventsReply.of(self.logs[peer], wanted).encode()

        return Service(messages.SERVICE, {messages.SWARM.name: swarm, EVENTS.name: events})


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events]


# Words of the command.


def test_since_is_a_while_a_moment_or_a_number() -> None:
    assert parse_since("", NOW) == (0.0, 0)
    assert parse_since("50", NOW) == (0.0, 50)
    assert [parse_since(text, NOW)[0] - NOW for text in ("90s", "10m", "2h", "1d", "0.5m")] == [
        -90, -600, -7200, -86400, -30,
    ]  # fmt: skip
    moment = datetime(2026, 11, 23, 14, 0)
    assert parse_since("2026-11-23T14:00", NOW) == (moment.timestamp(), 0)
    assert parse_since("2026-11-23T14:00:00+00:00", NOW)[0] == 1_795_442_400.0


@pytest.mark.parametrize("text", ["0", "-5", "soon", "10 m", "m", "2026-13-01", "1e3s"])
def test_what_is_no_time_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time"):
        parse_since(text, NOW)


def test_kinds_are_named_with_blanks_or_dashes() -> None:
    assert parse_kind("hop broke") == parse_kind("hop-broke") == Kind.HOP_BROKE
    with pytest.raises(ConfigError, match=r"no kind of event 'broken'; kinds are: started, joined"):
        parse_kind("broken")


def test_events_are_chosen_by_time_kind_and_peer() -> None:
    later = Event(1, 0.0, NOW + 10, CAROL, Kind.STARTED, "here")
    both = [LOST, later]
    assert Wanted().choose(both) == both
    assert Wanted(moment=NOW + 5).choose(both) == [later]
    assert Wanted(last=1).choose(both) == [later]
    assert Wanted.parse("5", ["lost"], "", NOW).choose(both) == [LOST]
    assert Wanted(about="bbb").choose(both) == [LOST]
    assert Wanted(about="aaa").choose(both) == [LOST]
    assert Wanted(about="d").choose(both) == []


# From daemons.


def test_all_daemons_are_asked_and_what_they_tell_is_merged() -> None:
    async def scenario() -> None:
        swarm = Swarm()
        async with swarm.open() as remote:
            for peer, text in ((BOB, "one"), (ALICE, "two"), (BOB, "three"), (CAROL, "four")):
                swarm.say(peer, text)
            events, silent = await collect(remote)
            assert (texts(events), silent) == (["one", "two", "three", "four"], {})

    run_virtual(scenario())


def test_pages_are_turned_until_all_is_told() -> None:
    async def scenario() -> None:
        swarm = Swarm()
        async with swarm.open() as remote:
            for number in range(2500):
                swarm.say(BOB, str(number))
            listener = Listener(remote)
            assert texts(await listener.look()) == [str(number) for number in range(2500)]
            swarm.asked.clear()
            swarm.say(BOB, "new")
            assert texts(await listener.look()) == ["new"]
            assert max(swarm.asked) == 2500

    run_virtual(scenario())


def test_a_daemon_that_is_gone_or_cut_off_is_named_and_the_others_are_shown() -> None:
    async def scenario() -> None:
        swarm = Swarm()
        async with swarm.open() as remote:
            swarm.say(ALICE, "here")
            swarm.say(BOB, "not to be seen")
            swarm.network.crash("b")
            swarm.network.partition({"c"}, {"observer"})
            events, silent = await collect(remote)
            assert texts(events) == ["here"]
            assert sorted(silent) == [BOB, CAROL]
            assert all(silent.values())

    run_virtual(scenario())


def test_when_nobody_tells_anything_that_is_an_error() -> None:
    async def scenario() -> None:
        swarm = Swarm()
        async with swarm.open() as remote:
            swarm.network.crash("b")
            with pytest.raises(UnreachableError, match="nobody tells events"):
                await collect(remote)
            swarm.network.crash("a")
            with pytest.raises(UnreachableError):
                await collect(remote)

    run_virtual(scenario())


def test_a_daemon_that_answers_in_the_name_of_another_is_left_out() -> None:
    async def scenario() -> None:
        swarm = Swarm()
        async with swarm.open() as remote:
            swarm.say(ALICE, "here")
            swarm.logs[BOB].daemon = CAROL
            events, silent = await collect(remote)
            assert texts(events) == ["here"]
            assert "answers as another peer, cccccccc" in silent[BOB]

    run_virtual(scenario())


def test_following_shows_what_comes_and_outlives_the_daemon_that_was_asked_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def scenario() -> None:
        swarm = Swarm()
        async with swarm.open() as remote, asyncio.TaskGroup() as group:
            swarm.say(ALICE, "old")
            swarm.say(BOB, "before")
            task = group.create_task(follow(remote, Wanted(last=1), as_json=True))
            await asyncio.sleep(0.5)
            swarm.say(BOB, "during")
            await asyncio.sleep(2.0)
            swarm.network.crash("a")
            swarm.say(CAROL, "afterwards")
            await asyncio.sleep(30.0)
            task.cancel()

    run_virtual(scenario())
    out, err = capsys.readouterr()
    # Each once, however often it was asked.
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["before", "during", "afterwards"]
    silent = [line for line in err.splitlines() if "not in it" in line]
    assert len(silent) == 2
    assert any(f"a:{PORT}" in line for line in silent)


# For people, and from files.


def test_an_event_is_one_line() -> None:
    line = line_of(LOST).plain
    assert line[2:] == f"{line[2:18]}  aaaaaaaa  {'lost':20}  lost bbbbbbbb: gone"
    assert "\n" not in line


def write(folder: Path, daemon: str, *said: tuple[float, str]) -> Path:
    path = folder / file_name(daemon[:8])
    moments = iter(moment for moment, _ in said)
    log = EventLog(daemon, wall=lambda: next(moments))
    log.keep_in(path)
    for _, text in said:
        log.record(Kind.STARTED, text)
    log.close()
    return path


def test_files_of_dead_daemons_are_merged(tmp_path: Path) -> None:
    alice = write(tmp_path, ALICE, (1.0, "one"), (3.0, "three"))
    write(tmp_path, BOB, (2.0, "two"))
    with alice.open("a") as file:
        file.write('{"torn')
    for paths in ([tmp_path], [alice, tmp_path], sorted(tmp_path.glob("*.jsonl"))):
        done = CliRunner().invoke(app, ["events", *(part for path in paths for part in ("--file", str(path)))])
        assert done.exit_code == 0, done.output
        assert [line.split()[-1] for line in done.stdout.splitlines()] == ["one", "two", "three"]
        assert "lines are torn" in done.stderr
    done = CliRunner().invoke(app, ["events", "--file", str(tmp_path), "--json", "--since", "1", "--about", "bbbb"])
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["two"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--file", "nowhere.jsonl"], "cannot be read"),
        (["--since", "soon"], "is no time"),
        (["--kind", "broken"], "no kind of event"),
        (["--state-dir", "nowhere"], "no daemon runs on this machine"),
    ],
)
def test_what_is_asked_wrongly_is_said(words: list[str], why: str) -> None:
    done = CliRunner().invoke(app, ["events", *words])
    assert (done.exit_code, done.stdout) == (2, "")
    assert why in done.stderr


def test_who_is_not_in_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    told.tell_silent({BOB: "it is gone"})
    assert capsys.readouterr().err == "distqatctl: not in it: bbbbbbbb: it is gone\n"
