"""Runs one daemon in this process until it is asked to leave."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from distqat.config import Settings
from distqat.errors import ConfigError
from distqat.ids import Endpoint, short
from distqat.peer.identity import open_identity
from distqat.peer.peer import Peer, PeerOrder
from distqat.peer.roster import ROLES
from distqat.rpc.grpc import open_transport
from distqat.rpc.loop import run
from distqat.telemetry import LogFormat, set_up_logging

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    settings: Settings
    roles: tuple[str, ...]
    join: tuple[str, ...]
    stage: int | None
    brings_run: bool
    log_format: LogFormat
    resumes: bool = False


def serve(order: Order) -> None:
    """Be a peer until SIGTERM, SIGINT or a drain. Raises ConfigError, CannotListenError, and IdentityError or
    ProtocolError, also later, when the swarm cannot have this daemon."""
    daemon = order.settings.daemon
    unknown = sorted(set(order.roles) - ROLES.keys())
    if unknown:
        raise ConfigError(f"there is no role '{unknown[0]}'; roles are: {', '.join(sorted(ROLES))}")
    if order.stage is not None and "expert" not in (order.roles or ("expert",)):
        raise ConfigError("--stage is for experts; add --role expert")
    join = tuple(Endpoint.parse(address) for address in order.join)
    with open_identity(Path(daemon.state_dir)) as identity:
        name = f"{'-'.join(order.roles) or 'spare'}-{short(identity.peer)}.log"
        folder = Path(daemon.log_dir) / order.settings.run.name if order.brings_run else Path(daemon.log_dir)
        set_up_logging(daemon.log_level, order.log_format, folder / name)
        wanted = PeerOrder(order.settings, identity, order.roles or ("expert",), join, order.stage, order.brings_run)
        run(_until_told(replace(wanted, resumes=order.resumes)))


async def _until_told(order: PeerOrder) -> None:
    loop, leaving = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _leave, leaving, number)
    async with open_transport() as transport, Peer.open(order, transport, leaving) as peer:
        await leaving.wait()
        await peer.drain()
    if peer.fault is not None:
        raise peer.fault
    log.info("left")


def _leave(leaving: asyncio.Event, number: int) -> None:
    if leaving.is_set():
        # Asked twice: whoever sends it wants it now, and a supervisor would send SIGKILL next.
        raise SystemExit(128 + number)
    log.info("%s: draining", signal.Signals(number).name)
    leaving.set()
