"""Whether a sibling that is waited for still answers: a stopped process keeps its connections, and says nothing."""

from __future__ import annotations

import asyncio
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
"""Questions in a row without an answer after which a sibling is silent; they take `Waits.invite` together."""


async def while_there(context: Context, sibling: Contact, work: Callable[[], Awaitable[T]], is_watched: bool) -> T:
    """Do what waits for a sibling. Raises UnreachableError as soon as the directory loses it; or, `is_watched`, when it
    answers nothing any more. A wait that is over before the first question costs no message.
    """
    if not is_watched:
        return await context.while_live(sibling.peer, work)

    async def outcome() -> tuple[T | None, DistqatError | None]:
        try:
            return await context.while_live(sibling.peer, work), None
        except DistqatError as error:
            return None, error

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_until_silent(context, sibling))
        working = group.create_task(outcome())
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        working.cancel()
    if working.cancelled():
        raise UnreachableError(f"{short(sibling.peer)} has not answered for {context.waits.invite:g} s")
    value, error = working.result()
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # Without an error there is a value.


async def _until_silent(context: Context, sibling: Contact) -> None:
    """Ask again and again, until nothing has been answered for `Waits.invite`.

    Questions are counted, not seconds: who was stopped itself meanwhile suspects nobody.
    """
    seconds = context.waits.invite
    unanswered = 0

    async def probe() -> None:
        nonlocal unanswered
        try:
            await context.transport.call(sibling.endpoint, messages.PROBE, b"", Deadline.after(seconds))
        except (DeadlineError, UnreachableError):
            return
        except DistqatError:
            pass  # It refuses, so it answers.
        unanswered = 0

    async with asyncio.TaskGroup() as group:
        await asyncio.sleep(seconds / PROBES)
        probes = set()
        while unanswered < PROBES:
            probes.add(group.create_task(probe()))
            await asyncio.sleep(seconds / PROBES)
            unanswered += 1
        for task in probes:
            task.cancel()
