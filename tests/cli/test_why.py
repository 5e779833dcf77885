"""Why a peer does what it does, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from distqat.cli.distqatctl import app
from distqat.cli.why import Inquiry, find, inquire, report, sentences
from distqat.errors import ConfigError, UnreachableError
from distqat.events import Event, Kind, Subject
from distqat.ids import Endpoint, PeerId, RunId, Seat, StageIndex
from distqat.roles import messages
from distqat.roles.events.messages import EVENTS, EventsReply
from distqat.roles.remote import Remote
from distqat.roles.status import (
    ExpertStatus,
    Lease,
    Loss,
    PeerStatus,
    PipelineStatus,
    RoleStatus,
    RunStatus,
    SwarmStatus,
)
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service
from tests.support import run_virtual

PORT = 7000
RUN = RunId("digits", "0123456789abcdef" * 2)
HEAD, ALICE, BOB, GONE = "f" * 40, "a" * 40, "b" * 40, "9" * 40
SEATS = tuple(Seat(PeerId(peer), Endpoint(peer[0], PORT), StageIndex(n)) for n, peer in enumerate((ALICE, BOB)))
LINE = PipelineStatus("p1-00ff", 3, SEATS, 12, phase="training", reason="training")
BOOKS = RunStatus(
    320, 640, 32, ("mlp/0", "mlp/1"), pipelines=(LINE,), losses=(Loss(GONE, "GoneError", "nobody listens"),),
    leases=(Lease(ALICE, 0.25, 8.0), Lease(BOB, 0.5, 3.0)),
)  # fmt: skip
CLIENT = PeerStatus(
    HEAD,
    Endpoint("f", PORT),
    "0.1.0",
    RUN,
    (
        RoleStatus("client", "training", "1 pipeline; no further one: no free expert", run=BOOKS),
        RoleStatus("trainer", "training", "driving 1 pipelines", pipelines=(LINE,)),
    ),
    reason="working for run digits@01234567",
)
SEATED = ExpertStatus(True, 1, "mlp/1", "p1-00ff", 12, 2, "29902a2fff", ready=True)
EXPERT = PeerStatus(
    BOB,
    Endpoint("b", PORT),
    "0.1.0",
    RUN,
    (RoleStatus("expert", "training", "training mlp/1 in pipeline p1-00ff", SEATED),),
    reason="working for run digits@01234567",
)
SWARM = SwarmStatus((CLIENT, EXPERT))
LOST = Event(1, 0.0, 1_700_000_000.0, HEAD, Kind.LOST, "lost 99999999: gone", Subject(peer=GONE, how="silence"))


def about(status: PeerStatus | None, *events: Event, peer: str = BOB, swarm: SwarmStatus = SWARM) -> Inquiry:
    return Inquiry(peer, status, swarm, events)


def said(inquiry: Inquiry) -> str:
    return "\n".join(sentences(inquiry))


# Who is meant.


def test_a_peer_is_found_by_the_beginning_of_its_id_or_by_its_address() -> None:
    assert find(SWARM, "bb") == (EXPERT, BOB)
    assert find(SWARM, f"b:{PORT}") == (EXPERT, BOB)
    # It was lost, and is known only by that.
    assert find(SWARM, "99") == (None, GONE)
    assert find(SWARM, f"9:{PORT}") == (None, "")


@pytest.mark.parametrize(("whom", "why"), [("x", "no peer 'x': this swarm has 99999999, bbbbbbbb"), ("", "no peer ''")])
def test_who_is_unknown_is_said_with_who_is_there(whom: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        find(SWARM, whom)


def test_a_beginning_that_fits_several_names_them() -> None:
    twin = replace(EXPERT, peer="b" * 39 + "c")
    with pytest.raises(ConfigError, match=r"several peers begin with 'bb'"):
        find(SwarmStatus((CLIENT, EXPERT, twin)), "bb")


# What is said.


def test_an_expert_says_what_it_does_where_it_stands_and_how_its_lease_is() -> None:
    inquiry = about(EXPERT)
    assert inquiry.is_healthy
    assert sentences(inquiry) == [
        "bbbbbbbb at b:7000 runs distqat 0.1.0 and works for run digits@01234567: working for run digits@01234567",
        "expert is training: training mlp/1 in pipeline p1-00ff",
        "  holds mlp/1: step 12, 2 rounds committed, digest 29902a2f",
        "is number 2 of 2 on the route of pipeline p1-00ff, epoch 3: trainer ffffffff > aaaaaaaa > [bbbbbbbb]; "
        "it is training: training",
        "its lease was renewed 0.5 s ago, as client ffffffff sees it; it is over after 3.0 s",
    ]


def test_an_expert_without_state_and_one_that_is_stuck() -> None:
    waiting = replace(SEATED, ready=False)
    role = RoleStatus("expert", "joining", "waiting: nobody holds mlp/1", waiting)
    inquiry = about(replace(EXPERT, roles=(role,), idle_seconds=8.0))
    assert not inquiry.is_healthy
    assert "is given mlp/1, and does not have its state yet" in said(inquiry)
    assert "its device has been busy with one piece of work for 8.0 s" in said(inquiry)


def test_a_client_and_trainer_tell_of_books_and_pipelines() -> None:
    text = said(about(CLIENT, peer=HEAD))
    assert "keeps the books: 320 of 640 samples are committed, 32 more are claimed" in text
    assert "drives pipeline p1-00ff, which is training: training" in text
    assert "client ffffffff holds no lease of it" in text
    broken = replace(CLIENT, roles=(RoleStatus("trainer", "training", "", pipelines=(replace(LINE, phase="broken"),)),))
    assert not about(broken, peer=HEAD).is_healthy


def test_a_joiner_that_knows_no_run_says_what_it_waits_for() -> None:
    alone = PeerStatus(ALICE, Endpoint("a", PORT), "0.1.0", reason="waiting: nobody answers: x:1: refused")
    text = said(about(alone, peer=ALICE, swarm=SwarmStatus((alone,))))
    assert "knows no run yet: waiting: nobody answers: x:1: refused" in text
    assert "it holds no role" in text


def test_of_one_that_does_not_answer_the_others_tell() -> None:
    silent = PeerStatus(GONE, Endpoint("9", PORT), reason="no answer within 2 s", reachable=False)
    inquiry = about(silent, LOST, peer=GONE, swarm=SwarmStatus((CLIENT, silent)))
    assert not inquiry.is_healthy
    text = said(inquiry)
    assert "99999999 at 9:7000 does not answer: no answer within 2 s" in text
    assert "ffffffff lost it at" in text
    assert "(silence): lost 99999999: gone" in text
    assert "client ffffffff holds no lease of it" in text


def test_of_one_that_is_not_there_any_more() -> None:
    assert said(about(None, peer=GONE)).splitlines() == [
        "99999999 is not in the swarm any more.", "its client lost it: nobody listens",
    ]  # fmt: skip
    assert "nobody has told of its loss yet" in said(about(None, peer=ALICE))
    assert not about(None, peer=GONE).is_healthy


def test_the_report_ends_with_the_last_events(capsys: pytest.CaptureFixture[str]) -> None:
    events = [Event(n, 0.0, 1_700_000_000.0 + n, BOB, Kind.STARTED, f"number {n}") for n in range(15)]
    report(about(EXPERT, *events))
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in out if "number" in line and "started" in line] == [
        str(n) for n in range(5, 15)
    ]


# Asked over the network.


def serve(swarm: SwarmStatus, own: PeerStatus, events: Sequence[Event] = ()) -> Service:
    async def answer(request: bytes, caller: Caller) -> bytes:
        return messages.encode(messages.SwarmReply(swarm.peers))

    async def status(request: bytes, caller: Caller) -> bytes:
        return messages.encode(messages.StatusReply(own))

    async def told(request: bytes, caller: Caller) -> bytes:
        return EventsReply(own.peer, (), False).encode()

    handlers = {messages.SWARM.name: answer, messages.STATUS.name: status, EVENTS.name: told}
    return Service(messages.SERVICE, handlers)


def test_a_stranger_to_the_asked_daemon_is_asked_itself() -> None:
    async def scenario() -> None:
        network = Network(seed=1)
        stranger = PeerStatus(ALICE, Endpoint("a", PORT), "0.1.0", reason="waiting: alone")
        async with (
            network.transport("f").serve(Endpoint("f", PORT)) as head,
            network.transport("a").serve(Endpoint("a", PORT)) as other,
        ):
            head.add(serve(SwarmStatus((CLIENT,)), CLIENT))
            other.add(serve(SwarmStatus((stranger,)), stranger))
            remote = Remote(network.transport("observer"), Endpoint("f", PORT), 5.0)
            found = await inquire(remote, f"a:{PORT}")
            assert found.peer == ALICE
            assert "waiting: alone" in said(found)
            with pytest.raises(UnreachableError):
                await inquire(remote, f"nowhere:{PORT}")

    run_virtual(scenario())


def test_without_a_daemon_to_ask_it_says_so() -> None:
    done = CliRunner().invoke(app, ["why", "abc", "--state-dir", "nowhere"])
    assert done.exit_code == 2
    assert "no daemon runs on this machine" in done.stderr
