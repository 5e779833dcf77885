"""What a sibling asks of others, and what their answers mean to `round`."""

from __future__ import annotations

from distqat.averaging import events, messages
from distqat.averaging.context import Context
from distqat.averaging.events import Answered, Event, Standing
from distqat.averaging.group import Contact, Invite, Invited, Join, JoinReply, Leave, Verdict, Vote
from distqat.averaging.presence import SilentError, while_there
from distqat.errors import (
    DeadlineError,
    DistqatError,
    GoneError,
    OverloadedError,
    RefusedError,
    RoundError,
    StaleError,
    TensorError,
    UnreachableError,
    WrongRunError,
)
from distqat.rpc.transport import Deadline

LEAVE_SECONDS = 1.0
"""For telling a sibling that this one leaves."""


async def ask(context: Context, leader: Contact, join: Join, patience: float) -> Event:
    """Wait at a leader until the group has formed."""

    async def call() -> bytes:
        deadline = Deadline.after(context.waits.join)
        return await context.transport.call(leader.endpoint, messages.JOIN, messages.encode(join), deadline)

    try:
        reply = messages.decode(JoinReply, await while_there(context, leader, call, patience))
    except DistqatError as error:
        return _refusal(error)
    if reply.group is not None:
        return events.Grouped(reply.group)
    assert reply.stale is not None
    return events.Outdated(reply.stale)


async def cast(context: Context, leader: Contact, vote: Vote, patience: float) -> Event:
    """Tell the leader what the attempt came to here, and wait for its verdict."""

    async def call() -> bytes:
        deadline = Deadline.after(context.waits.vote)
        return await context.transport.call(leader.endpoint, messages.VOTE, messages.encode(vote), deadline)

    try:
        return events.Heard(messages.decode(Verdict, await while_there(context, leader, call, patience)))
    except DistqatError as error:
        return _refusal(error)


async def ring(context: Context, sibling: Contact, join: Join, patience: float) -> Event:
    """Ask a sibling to join here, and learn how things stand with it; it is silent after so many seconds."""
    invite = Invite(join.round, context.me, context.endpoint)
    deadline = Deadline.after(patience)
    try:
        request = messages.encode(invite)
        reply = messages.decode(
            Invited, await context.transport.call(sibling.endpoint, messages.INVITE, request, deadline)
        )
    except StaleError:
        return await _ask_ahead(context, sibling, join, patience)
    except RoundError as error:
        return Answered(sibling, Standing.AGAINST, error.reason)
    except (RefusedError, WrongRunError) as error:
        return Answered(sibling, Standing.AWAY, error.reason)
    except GoneError as error:
        return Answered(sibling, Standing.GONE, error.reason)
    except UnreachableError as error:
        return Answered(sibling, Standing.UNREACHABLE, error.reason)
    except DistqatError as error:
        return Answered(sibling, Standing.SILENT, error.reason)
    if reply.leading:
        return Answered(sibling, Standing.LEADING, reply.reason)
    if reply.held_up:
        return Answered(sibling, Standing.HELD_UP, reply.reason)
    return Answered(sibling, Standing.COMING if reply.joining else Standing.ENGAGED, reply.reason)


async def leave(context: Context, sibling: Contact) -> None:
    """Tell a sibling that this one gives its stage up. Raises DistqatError."""
    request = messages.encode(Leave(context.run, context.stage, context.me))
    await context.transport.call(sibling.endpoint, messages.LEAVE, request, Deadline.after(LEAVE_SECONDS))


async def _ask_ahead(context: Context, sibling: Contact, join: Join, patience: float) -> Event:
    """It has committed this round, so it answers a join at once with where to catch up."""
    deadline = Deadline.after(patience)
    try:
        request = messages.encode(join)
        reply = messages.decode(
            JoinReply, await context.transport.call(sibling.endpoint, messages.JOIN, request, deadline)
        )
    except DistqatError as error:
        return Answered(sibling, Standing.SILENT, error.reason)
    if reply.stale is None:
        return Answered(sibling, Standing.SILENT, "it does not say how far it is")
    return events.Outdated(reply.stale)


def _refusal(error: DistqatError) -> Event:
    """Why a leader did not answer as one."""
    match error:
        case RoundError() | WrongRunError() | TensorError():
            return events.Dismissed(error.reason)
        case RefusedError() | OverloadedError() | DeadlineError() | StaleError():
            return events.Declined(error.reason)
        case _:
            is_gone, is_silent = isinstance(error, GoneError), isinstance(error, SilentError)
            return events.Unreached(error.reason, is_gone, is_silent)
