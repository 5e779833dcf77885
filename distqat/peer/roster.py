"""The roles of a daemon, taken and dropped while it runs."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from distqat.aio import Backoff, supervise
from distqat.errors import ConfigError, DeadlineError, DistqatError, GivenUpError, RefusedError
from distqat.events import Kind, Subject
from distqat.ids import PeerId
from distqat.roles.beside import JudgingRole
from distqat.roles.context import RESTARTS, OpenRole, Role, RoleContext, RoleOptions
from distqat.roles.status import RoleStatus

log = logging.getLogger(__name__)

ROLES: Mapping[str, str] = {
    "monitor": "distqat.roles.monitor",
    "client": "distqat.roles.client",
    "trainer": "distqat.roles.trainer",
    "expert": "distqat.roles.expert",
    "mirror": "distqat.roles.mirror",
}
"""Where each role is made: a module with `open_role`. Imported only when the role is taken, since some need torch."""

READ_LATE = ("torch.fx.experimental.symbolic_shapes", "numpy.random")
"""What torch and numpy read only when the first stage is built; it takes as long as the smaller half of torch."""

TAKE_SECONDS = 60.0
"""A role that is not there after this long has failed; torch may have to be read from a slow disk."""


def read_roles() -> None:
    """Import all of them and what they build stages with, so that a process forked off this one need not."""
    for module in (*ROLES.values(), *READ_LATE):
        importlib.import_module(module)


@dataclass
class _Held:
    """A role that is held, or being taken."""

    options: RoleOptions
    task: asyncio.Task[None] | None = None  # None only until its task is made.
    role: Role | None = None  # None until it is open, and after a failure until it is open again.
    phase: str = "joining"
    reason: str = "starting: reading the libraries that the role needs"
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    giving_back: asyncio.Task[None] | None = None  # None until it is dropped.


class Roster:
    """Holds the roles of one daemon; each runs under supervision and takes none of the others down."""

    def __init__(self, context: RoleContext, group: asyncio.TaskGroup) -> None:
        self._context = context
        self._group = group
        self._held: dict[str, _Held] = {}
        self._given_up: dict[str, str] = {}  # Roles that failed too often and are not held any more: why.

    def __repr__(self) -> str:
        return f"<Roster {' '.join(self.names()) or 'spare'}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, context: RoleContext) -> AsyncIterator[Roster]:
        """A roster without roles; at the end all that are left are dropped."""
        async with asyncio.TaskGroup() as group:
            roster = cls(context, group)
            try:
                yield roster
            finally:
                for name in list(roster._held):
                    await roster._close(name)

    def names(self) -> tuple[str, ...]:
        """The roles that are held."""
        return tuple(sorted(self._held))

    def find(self, name: str) -> Role | None:
        """The role of that name; None if it is not held, or not ready."""
        held = self._held.get(name)
        return held.role if held is not None else None

    def get(self, name: str) -> Role:
        """The role of that name; RefusedError if it is not held, or not ready."""
        held = self._held.get(name)
        if held is None or held.role is None:
            why = "does not hold" if held is None else "is still taking"
            raise RefusedError(f"this daemon {why} the role '{name}'")
        return held.role

    def statuses(self) -> tuple[RoleStatus, ...]:
        """What each role does."""
        held = [
            held.role.status() if held.role is not None else RoleStatus(name, held.phase, held.reason)
            for name, held in sorted(self._held.items())
        ]
        gone = [RoleStatus(name, "failed", f"dropped: {why}") for name, why in sorted(self._given_up.items())]
        return tuple(held + gone)

    def is_judged_here(self, peer: PeerId) -> bool:
        """Whether the client here judges by itself if that peer is lost, and looks at it now."""
        client = self.find("client")
        return client is not None and cast(JudgingRole, client).suspect(peer)

    async def add(self, name: str, options: RoleOptions | None = None) -> None:
        """Take a role and wait until it is open; taking one twice changes nothing. Raises ConfigError."""
        if name not in ROLES:
            raise ConfigError(f"there is no role '{name}'; roles are: {', '.join(sorted(ROLES))}")
        if {name, *self._held} >= {"expert", "mirror"}:
            raise ConfigError("a daemon is an expert or a mirror, not both: each gives state away under the same name")
        wanted = options or RoleOptions()
        if name not in self._held:
            self._given_up.pop(name, None)
            held = self._held[name] = _Held(wanted)
            held.task = self._group.create_task(self._supervised(name, held, wanted), name=name)
        held = self._held[name]
        if wanted.stage not in (None, held.options.stage):
            raise RefusedError(f"this daemon holds the role '{name}' already; drop it, then add it with its stage")
        try:
            async with asyncio.timeout(TAKE_SECONDS):
                await held.ready.wait()
        except TimeoutError:
            raise DeadlineError(f"role '{name}' is not open after {TAKE_SECONDS:.0f} s: {held.reason}") from None
        if self._held.get(name) is not held:
            raise GivenUpError(f"the role '{name}' is dropped: {self._given_up.get(name, 'it was given back')}")

    async def drop(self, name: str, seconds: float | None = None) -> None:
        """Give a role back in good order, within the drain time-out or less; one that is not held is refused."""
        self.get(name)
        held = self._held[name]
        if held.giving_back is None:
            # A task of its own: whoever asked may hang up, and a role that is half given back is of no use.
            held.giving_back = self._group.create_task(self._give_back(name, held), name=f"drop {name}")
        _, late = await asyncio.wait([held.giving_back], timeout=seconds)
        if late:
            log.warning("role %s did not finish in time and is dropped as it is", name)
            held.giving_back.cancel()
            await self._close(name)

    async def drain(self) -> None:
        """Give all roles back, trainers before experts, so that these see the end of their steps."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._context.settings.daemon.drain_timeout
        client = self._held.get("client")
        if client is not None and client.role is not None:
            # It plans no more, and keeps the books until the last step is in them.
            await client.role.drain()
        for name in ("trainer", "expert", "mirror", "client", "monitor"):
            held = self._held.get(name)
            if held is not None and held.role is not None:
                await self.drop(name, max(0.0, end - loop.time()))

    async def _give_back(self, name: str, held: _Held) -> None:
        assert held.role is not None
        try:
            async with asyncio.timeout(self._context.settings.daemon.drain_timeout):
                await held.role.drain()
        except TimeoutError:
            log.warning("role %s did not finish in time and is dropped as it is", name)
        except DistqatError as error:
            log.warning("role %s did not finish and is dropped as it is: %s", name, error)
        await self._close(name)

    async def _close(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is None:
            # Somebody else dropped it meanwhile.
            return
        if held.task is not None:
            held.task.cancel()
            await asyncio.wait([held.task])
        log.info("dropped the role %s", name)
        self._record(Kind.ROLE_DROPPED, f"dropped the role {name}", name)

    def _record(self, kind: Kind, text: str, role: str) -> None:
        self._context.telemetry.events.record(kind, text, Subject(role=role))

    async def _supervised(self, name: str, held: _Held, options: RoleOptions) -> None:
        def failed(error: BaseException) -> None:
            held.role, held.phase, held.reason = None, "failed", f"failed: {error}; trying again"
            self._record(Kind.ROLE_FAILED, f"the role {name} failed: {error}", name)

        try:
            work = partial(self._run, name, held, options)
            await supervise(f"role {name}", work, Backoff(0.5, 10.0), failed, RESTARTS)
        except GivenUpError as error:
            self._held.pop(name, None)
            self._given_up[name] = error.reason
            held.ready.set()
            log.warning("dropped the role %s: %s", name, error.reason)
            self._record(Kind.ROLE_DROPPED, f"dropped the role {name}: {error.reason}", name)

    async def _run(self, name: str, held: _Held, options: RoleOptions) -> None:
        # Imported in a thread: torch takes seconds to read, and the loop has leases to answer meanwhile.
        module = await asyncio.to_thread(importlib.import_module, ROLES[name])
        open_role: OpenRole = module.open_role
        async with open_role(self._context, options) as role:
            held.role, held.reason = role, ""
            held.ready.set()
            log.info("took the role %s", name)
            self._record(Kind.ROLE_TAKEN, f"took the role {name}", name)
            await asyncio.Event().wait()
