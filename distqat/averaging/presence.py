"""Whether a sibling that is waited for still answers: a stopped process keeps its connections, and says nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from distqat.averaging import messages
from distqat.averaging.context import Context
from distqat.averaging.group import Contact
from distqat.errors import DeadlineError, DistqatError, UnreachableError
from distqat.ids import short
from distqat.rpc.transport import Deadline

T = TypeVar("T")

PROBES = 4
"""Questions in `Waits.invite`."""


class SilentError(UnreachableError):
    """A sibling answers nothing."""


async def while_there(context: Context, sibling: Contact, work: Callable[[], Awaitable[T]], patience: float) -> T:
    """Do what waits for a sibling. Raises UnreachableError as soon as the directory loses it, SilentError when it has
    answered nothing for `patience` seconds. A wait that is over before the first question costs no message.
    """
    if patience == math.inf:
        return await context.while_live(sibling.peer, work)

    async def outcome() -> tuple[T | None, DistqatError | None]:
        try:
            return await context.while_live(sibling.peer, work), None
        except DistqatError as error:
            return None, error

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_until_silent(context, sibling, patience))
        working = group.create_task(outcome())
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        working.cancel()
    if working.cancelled():
        raise SilentError(f"{short(sibling.peer)} has not answered for {watching.result():g} s")
    value, error = working.result()
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # Without an error there is a value.


async def _until_silent(context: Context, sibling: Contact, patience: float) -> float:
    """Ask again and again, until nothing has been answered for so many seconds, which it returns. An answer counts
    however late it comes: who takes that long to answer is given twice as long, and `Waits.invite`.

    Questions are counted, not seconds: who was stopped itself meanwhile suspects nobody.
    """
    loop, pause = asyncio.get_running_loop(), context.waits.invite / PROBES
    unanswered, probes = 0, set[asyncio.Task[None]]()

    async def probe() -> None:
        nonlocal unanswered, patience
        began = loop.time()
        try:
            await context.transport.call(sibling.endpoint, messages.PROBE, b"", Deadline.after(context.waits.join))
        except (DeadlineError, UnreachableError):
            return
        except DistqatError:
            pass  # It refuses, so it answers.
        unanswered = 0
        patience = max(patience, context.waits.invite + 2 * (loop.time() - began))

    async with asyncio.TaskGroup() as group:
        await asyncio.sleep(pause)
        while unanswered * pause < patience:
            task = group.create_task(probe())
            probes.add(task)
            task.add_done_callback(probes.discard)
            await asyncio.sleep(pause)
            unanswered += 1
        for task in probes:
            task.cancel()
    return patience
