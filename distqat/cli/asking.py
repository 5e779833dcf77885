"""One question to one daemon, from a command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from distqat.errors import UnreachableError
from distqat.ids import Endpoint
from distqat.peer.identity import running_endpoints
from distqat.roles.remote import Remote
from distqat.rpc.grpc import open_transport
from distqat.rpc.loop import run

T = TypeVar("T")


def ask(peer: str, state_dir: Path, question: Callable[[Remote], Awaitable[T]], seconds: float) -> T:
    """Put a question to the daemon at `peer`, or to the first one that runs on this machine. Raises DistqatError."""

    async def put() -> T:
        async with open_transport() as transport:
            return await question(Remote(transport, _endpoint(peer, state_dir), seconds))

    return run(put())


def _endpoint(peer: str, state_dir: Path) -> Endpoint:
    if peer:
        return Endpoint.parse(peer)
    running = running_endpoints(state_dir)
    if not running:
        raise UnreachableError(f"no daemon runs on this machine (none in {state_dir}); name one with --peer HOST:PORT")
    return running[0]
