"""Where a run's samples come from, as its client provides: a data server that it keeps, or each trainer itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from distqat import telemetry
from distqat.config import RunConfig
from distqat.data.server.keeper import Keeper, Launch, open_keeper
from distqat.errors import RefusedError
from distqat.events import Kind, Subject
from distqat.ids import Endpoint
from distqat.roles.context import RoleContext
from distqat.telemetry import Reason

LOOK_SECONDS = 0.2
"""Between two looks at a data server that is opening its data set, for the status."""


@dataclass(frozen=True)
class Provision:
    """What a client says of it."""

    num_samples: int
    """To train on, in each epoch."""
    where: Callable[[], Endpoint]
    """Where the data server answers. Raises RefusedError: it does not now, or there is none."""
    status: Callable[[], str]
    """One sentence on the data server; empty: there is none."""


def without_server(num_samples: int) -> Provision:
    """Every trainer reads the data itself."""

    def where() -> Endpoint:
        raise RefusedError("the run has no data server: its trainers read the data themselves")

    return Provision(num_samples, where, lambda: "")


@asynccontextmanager
async def open_provision(context: RoleContext, config: RunConfig, reason: Reason) -> AsyncIterator[Provision]:
    """A data server on this machine, until the end of the block. Raises GivenUpError when none stays alive."""
    events = context.telemetry.events

    def restarted(why: str) -> None:
        events.record(Kind.DATA_SERVER_RESTARTED, f"a new data server serves: {why}", Subject(how="data server"))

    daemon = context.settings.daemon
    listen = replace(Endpoint.parse(daemon.listen), port=daemon.data_port)
    launch = Launch(
        config, listen, context.endpoint.host, log_level=daemon.log_level, log_format=telemetry.log_format()
    )
    async with open_keeper(launch, restarted) as keeper:
        await _wait_samples(keeper, reason)
        yield Provision(keeper.num_samples, keeper.where, lambda: keeper.status)


async def _wait_samples(keeper: Keeper, reason: Reason) -> None:
    while not keeper.num_samples:
        reason.set(keeper.status)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await keeper.wait_samples()
        except TimeoutError:
            continue
