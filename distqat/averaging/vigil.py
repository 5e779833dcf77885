"""Rings the siblings for want of which a round has failed, while this one trains on: no step waits for the absent.

What they answer is told to the round, and ends the impasse if it is news (`Company.impasse`). Until then, or until they
are taken for dead, every further call of `synchronise` fails at once.
"""

from __future__ import annotations

import asyncio

from distqat.averaging import calls
from distqat.averaging.group import Contact, Join
from distqat.averaging.leader import RING_INTERVAL
from distqat.averaging.pursuit import Pursuit
from distqat.averaging.way import State


async def keep_vigil(pursuit: Pursuit) -> None:
    """For ever, as often as a leader rings."""
    while True:
        await pursuit.stranded.wait()
        await asyncio.sleep(RING_INTERVAL)
        company, join = pursuit.round.company, pursuit.wanted
        if pursuit.round.state is not State.RESTING or join is None:
            continue
        async with asyncio.TaskGroup() as group:
            for peer in company.impasse:
                if peer in company.endpoints:
                    group.create_task(_ring(pursuit, company.contact(peer), join))


async def _ring(pursuit: Pursuit, sibling: Contact, join: Join) -> None:
    event = await calls.ring(pursuit.context, sibling, join, pursuit.round.company.patience(sibling.peer))
    # A call that has begun meanwhile asks by itself.
    if pursuit.round.state is State.RESTING and sibling.peer in pursuit.round.company.impasse:
        pursuit.feed(event)
