"""`--resume`: the daemon goes on with a run or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distqat.errors import DistqatError, NothingToResumeError
from distqat.roles.checkpoint import places
from distqat.roles.context import RoleContext
from distqat.rpc.transport import Deadline

GRACE_SECONDS = 30.0
"""For which a daemon waits to hear of anything that could be gone on with, once it knows the run."""

LOOK_SECONDS = 0.5


async def insist(context: RoleContext, end: Callable[[DistqatError], None]) -> None:
    """Returns as soon as the run is known to have a past; else the daemon is told to end."""
    config = await context.run.wait()
    # Whoever takes them up first looks at each byte of them, which may take long.
    root = places.root_of(context.settings.daemon, context.state_dir)
    if places.has_any(root, config.id):
        return
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await context.directory.wait_synced()
            while not context.history.has_committed(config.id, snapshot := context.directory.snapshot()):
                await context.directory.wait_changed(snapshot.version, Deadline.after(LOOK_SECONDS))
    except TimeoutError:
        end(
            NothingToResumeError(
                f"there is nothing of run {config.id} to go on with: no checkpoint here, and nobody who was heard of "
                f"within {GRACE_SECONDS:.0f} s has one; leave --resume out to begin it"
            )
        )
