"""What a client makes of an answer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from distqat.config import load
from distqat.discovery.records import ExpertRecord, PeerRecord
from distqat.discovery.view import Entry, Snapshot
from distqat.ids import Endpoint, PeerId
from distqat.roles import messages
from distqat.roles.client import Client
from distqat.roles.leases import Leases
from distqat.roles.status import PeerStatus
from distqat.rpc.local import Network
from distqat.rpc.transport import Caller, Service
from distqat.telemetry import Telemetry
from tests.support import run_virtual

BOB, CAROL = PeerId("b" * 40), PeerId("c" * 40)
AT = Endpoint("host", 1)


def test_who_answers_under_another_name_renews_nobody_elses_lease() -> None:
    async def scenario() -> None:
        network, leases, lost = Network(), Leases(2.0), list[PeerId]()
        context: Any = SimpleNamespace(
            me=PeerId("a" * 40),
            transport=network.transport("client"),
            telemetry=Telemetry(),
            lose=lambda peer, at, reason: lost.append(peer),
            directory=SimpleNamespace(snapshot=Snapshot),
        )
        client = Client(context)
        client._config = load().run_config()
        leases.answered(BOB, PeerStatus(BOB, AT), asyncio.get_running_loop().time())

        async def status(request: bytes, caller: Caller) -> bytes:
            return messages.encode(messages.StatusReply(PeerStatus(CAROL, AT)))

        async with network.transport("host").serve(AT) as server:
            server.add(Service(messages.SERVICE, {messages.STATUS.name: status}))
            await client._ask(leases, CAROL, AT)
            assert (set(leases.statuses), lost) == ({BOB, CAROL}, [])
            await client._ask(leases, BOB, AT)
            assert (set(leases.statuses), lost) == ({CAROL}, [BOB])
            assert "is the address of cccccccc now" in leases.lost[BOB].reason

    run_virtual(scenario())


def test_a_daemon_that_is_back_is_asked_where_its_newest_record_says() -> None:
    old, new = Endpoint("host", 1), Endpoint("host", 2)
    known = Snapshot(
        peers={BOB: Entry(BOB, 9, PeerRecord(new, ("expert",)))}, experts={BOB: Entry(BOB, 7, ExpertRecord(old))}
    )

    async def scenario() -> None:
        network, leases, lost = Network(), Leases(2.0), list[PeerId]()
        context: Any = SimpleNamespace(
            me=PeerId("a" * 40),
            run=SimpleNamespace(id=None),
            transport=network.transport("client"),
            telemetry=Telemetry(),
            lose=lambda peer, at, reason: lost.append(peer),
            directory=SimpleNamespace(snapshot=lambda: known),
        )
        client = Client(context)
        assert client._peers(leases) == {BOB: new}
        # The answer to a call that was under way when it began anew.
        await client._ask(leases, BOB, old)
        assert not lost

    run_virtual(scenario())
