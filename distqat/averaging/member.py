"""What a sibling asks of others: to be in a group, to come into one, and what became of it."""

from __future__ import annotations

from distqat.averaging import messages
from distqat.averaging.context import Context
from distqat.averaging.group import Invite, Join, Verdict, Vote
from distqat.averaging.messages import Invited, JoinReply
from distqat.ids import Endpoint, PeerId
from distqat.rpc.transport import Deadline


async def join(context: Context, leader: PeerId, endpoint: Endpoint, request: Join) -> JoinReply:
    """Wait at a leader until the group has formed. Raises DistqatError; RefusedError when it does not lead."""

    async def ask() -> bytes:
        deadline = Deadline.after(context.waits.join)
        return await context.transport.call(endpoint, messages.JOIN, messages.encode(request), deadline)

    return messages.decode(JoinReply, await context.while_live(leader, ask))


async def invite(context: Context, endpoint: Endpoint, number: int) -> Invited:
    """Ask a sibling to join here. Raises StaleError when it has committed the round already."""
    request = Invite(context.round(number), context.me, context.endpoint)
    deadline = Deadline.after(context.waits.invite)
    reply = await context.transport.call(endpoint, messages.INVITE, messages.encode(request), deadline)
    return messages.decode(Invited, reply)


async def vote(context: Context, leader: PeerId, endpoint: Endpoint, ballot: Vote) -> Verdict:
    """Tell the leader what the attempt came to here, and wait for its verdict. Raises DistqatError."""

    async def ask() -> bytes:
        deadline = Deadline.after(context.waits.vote)
        return await context.transport.call(endpoint, messages.VOTE, messages.encode(ballot), deadline)

    return messages.decode(Verdict, await context.while_live(leader, ask))
