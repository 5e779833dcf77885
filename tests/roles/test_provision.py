"""What a client does with its data server: how it starts it, and that none is shown which has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distqat.config import load
from distqat.data.server.keeper import Launch
from distqat.errors import StaleError
from distqat.ids import Endpoint, PeerId
from distqat.roles.client import Client
from distqat.roles.provision import Provision, open_provision
from distqat.telemetry import Reason, Telemetry, set_up_logging
from tests.support import run_virtual


@pytest.fixture
def json_logs() -> Iterator[None]:
    root = logging.getLogger("distqat")
    before = list(root.handlers), root.level, root.propagate
    root.handlers = []
    set_up_logging("warning", "json")
    yield
    root.handlers, root.level, root.propagate = before


@pytest.mark.usefixtures("json_logs")
def test_the_data_server_logs_as_the_daemon_does(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Launch] = []

    @asynccontextmanager
    async def open_keeper(launch: Launch, restarted: Any) -> AsyncIterator[Any]:
        launches.append(launch)
        yield SimpleNamespace(num_samples=7, where=None, status="serving")

    monkeypatch.setattr("distqat.roles.provision.open_keeper", open_keeper)
    settings = load(None, ["data.server=on", "daemon.log_level=warning"])
    context: Any = SimpleNamespace(telemetry=Telemetry(), settings=settings, endpoint=Endpoint("host", 1))

    async def main() -> None:
        async with open_provision(
            context, settings.run_config(), Reason(logging.getLogger("distqat"), "")
        ) as provision:
            assert provision.num_samples == 7

    run_virtual(main())
    assert [(launch.log_level, launch.log_format) for launch in launches] == [("warning", "json")]


def test_a_client_that_plans_no_more_shows_no_data_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    @asynccontextmanager
    async def open_it(*args: Any) -> AsyncIterator[Provision]:
        yield Provision(7, lambda: Endpoint("host", 2), lambda: "data server serving: 7 samples")

    async def stand_by(*args: Any) -> None:
        return None

    async def own(client: Client, *args: Any) -> None:
        said.append(client.status().reason)
        raise StaleError("another plans this run too")

    monkeypatch.setattr("distqat.roles.client.open_provision", open_it)
    monkeypatch.setattr(Client, "_wait_turn", stand_by)
    monkeypatch.setattr(Client, "_rivals", lambda client: [])
    monkeypatch.setattr(Client, "_own", own)

    async def main() -> None:
        config = load(None, ["data.server=on"]).run_config()

        async def known() -> Any:
            return config

        async def synced() -> None:
            await asyncio.sleep(0)

        directory = SimpleNamespace(wait_synced=synced, announce=lambda record: None)
        context: Any = SimpleNamespace(
            me=PeerId("a" * 40),
            run=SimpleNamespace(wait=known),
            endpoint=Endpoint("host", 1),
            telemetry=Telemetry(),
            state_dir=tmp_path,
            directory=directory,
        )
        client = Client(context)
        with pytest.raises(StaleError):
            await client.work()
        assert "data server serving" in said[0]
        assert "data server" not in client.status().reason

    run_virtual(main())
