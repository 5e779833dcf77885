"""Ends a pipeline whose trainer is lost: first its steps come to an end, then its samples go to others.

A trainer that is cut off from the client may still reach its experts, and they commit what it has submitted. So every
live expert is fenced before a sample is handed out again: it opens no route of that pipeline any more, and says what it
has committed last. A step that one stage has committed and another has not heard of is applied there too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from distqat.data.ledger import Ledger
from distqat.errors import DistqatError
from distqat.ids import PeerId, PipelineId, RunId, Seat, short
from distqat.model.agreement import LossScale, Verdict
from distqat.roles.leases import Leases
from distqat.roles.orders.messages import FenceReply
from distqat.roles.remote import Remote
from distqat.rpc.transport import Transport

log = logging.getLogger(__name__)

NOTHING = FenceReply(0, 0, Verdict(1.0, LossScale()))
"""No step is known to be committed."""


class Fencing:
    """Fences pipelines of one run, and books what they have committed."""

    def __init__(self, transport: Transport, run: RunId, ledger: Ledger, leases: Leases) -> None:
        self._transport = transport
        self._run = run
        self._ledger = ledger
        self._leases = leases

    @property
    def has_experts(self) -> bool:
        """Whether anybody is there to be fenced."""
        return bool(self._experts())

    async def end(self, pipeline: PipelineId, route: tuple[Seat, ...] = ()) -> bool:
        """Fence the pipeline, book its committed claims and free the others. False: some live expert has not answered
        yet, or none is known; ask again. `route` is its last one; without it every expert that holds all gradients of
        the last step applies them."""
        experts = self._experts()
        answers = await self._ask(pipeline, experts, NOTHING)
        last = max(answers.values(), key=lambda answer: answer.step, default=NOTHING)
        behind = {peer for peer, answer in answers.items() if answer.step < last.step}
        if route:
            behind &= {seat.peer for seat in route}
        is_told = len(await self._ask(pipeline, behind, last)) == len(behind)
        if not experts or len(answers) < len(experts) or not is_told:
            return False
        booked, freed = self._ledger.close(pipeline, last.claim)
        text = "pipeline %s is fenced at step %d: %d samples of it are booked, %d go to others"
        log.info(text, pipeline, last.step, booked, freed)
        return True

    def _experts(self) -> set[PeerId]:
        """The live ones. One that is lost commits nothing more with the others, each of which refuses the route; a
        role that was given up does nothing at all, and cannot answer."""
        return {
            peer
            for peer, status in self._leases.statuses.items()
            if status.run == self._run and any(role.expert is not None for role in status.roles)
        }

    async def _ask(
        self, pipeline: PipelineId, experts: Collection[PeerId], last: FenceReply
    ) -> Mapping[PeerId, FenceReply]:
        """The answers of those that answer within a lease."""
        answers: dict[PeerId, FenceReply] = {}

        async def ask(peer: PeerId, remote: Remote) -> None:
            try:
                answers[peer] = await remote.fence(self._run, pipeline, last.step, last.verdict)
            except DistqatError as error:
                log.info("%s has not fenced pipeline %s: %s", short(peer), pipeline, error)

        async with asyncio.TaskGroup() as group:
            for peer in experts:
                # Read now: whoever is lost while others are asked is not in the leases any more.
                if (status := self._leases.statuses.get(peer)) is not None:
                    group.create_task(ask(peer, Remote(self._transport, status.endpoint, self._leases.seconds)))
        return answers
