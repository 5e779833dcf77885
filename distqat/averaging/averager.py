"""The object that the expert role owns: the outer state of its stage, and one committed round when it asks for it.

Knows nothing of models and optimizers: flat vectors go in, flat vectors come out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import torch

from distqat.averaging import catchup, outer
from distqat.averaging.committed import Committed, Receipt
from distqat.averaging.context import Context, Sibling
from distqat.averaging.effort import Effort
from distqat.averaging.lobby import Lobby
from distqat.averaging.outer import OuterState
from distqat.averaging.pursuit import Pursuit
from distqat.errors import DistqatError, RoundError, StateError, TensorError
from distqat.ids import PeerId, short
from distqat.telemetry import Reason

log = logging.getLogger(__name__)


class Averager:
    """One stage's outer rounds at one sibling. Only `open` makes one."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.reason = Reason(log, "waiting: no committed state yet")
        self.lobby = Lobby(context)
        self.committed = Committed(context, self.lobby)
        self.pursuit = Pursuit(context, self.lobby, self.committed, self.reason)
        self._effort: Effort | None = None  # The call of `synchronise` under way.
        self._given: OuterState | None = None  # What the owner was last given; its local values begin there.

    def __repr__(self) -> str:
        return f"<Averager stage {self.context.stage} {self.outer or 'without state'}: {self.reason}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, context: Context) -> AsyncIterator[Self]:
        """An averager; who waits at it is sent away at the end. Serve `service.services` of it meanwhile."""
        averager = cls(context)
        try:
            yield averager
        finally:
            averager.lobby.send_away(f"{short(context.me)} leaves stage {context.stage}")

    @property
    def outer(self) -> OuterState | None:
        """What is committed; None until founded or caught up."""
        return self.committed.outer

    @property
    def receipts(self) -> deque[Receipt]:
        """Of the latest rounds committed here, oldest first."""
        return self.committed.receipts

    @property
    def invited(self) -> bool:
        """Whether a sibling waits for this one: synchronise at the next step boundary, or now if idle."""
        return self.outer is not None and self.lobby.invited.is_set()

    async def wait_invited(self) -> None:
        """Until a sibling waits for this one."""
        await self.lobby.invited.wait()

    def is_due(self, steps: int) -> bool:
        """Whether to synchronise after so many steps since the round before: they are done, or it is invited."""
        if self.outer is None:
            return False
        return self.invited or steps >= outer.steps_between(self.outer.round, self.context.sync)

    async def found(self, local: torch.Tensor) -> OuterState:
        """Begin from fresh numbers [num_elements]; only for a run that has never committed a round."""
        self._check(local)
        state = await self.context.work(lambda: OuterState.founding(local, self.context.num_parameters))
        return self._adopt(state)

    async def catch_up(self, donors: Sequence[Sibling]) -> OuterState:
        """Take the committed state of a donor; the most advanced is asked first. Raises StateError."""
        if self._effort is not None:
            raise RoundError("a round is under way, which catches up by itself")
        able = [donor for donor in donors if donor.ready]
        holders = Counter((donor.round, donor.digest) for donor in able)
        reasons = []
        for donor in sorted(able, key=lambda donor: (-donor.round, -holders[donor.round, donor.digest], donor.peer)):
            self.reason.set(f"catching up with stage {self.context.stage} from {short(donor.peer)}")
            try:
                state = await catchup.fetch(self.context, donor.peer, donor.endpoint)
            except DistqatError as error:
                reasons.append(f"{short(donor.peer)}: {error.reason}")
            else:
                return self._adopt(state)
        self.reason.set(f"waiting: no donor of stage {self.context.stage} ({'; '.join(reasons) or 'none is known'})")
        raise StateError(self.reason.text)

    async def synchronise(self, local: torch.Tensor, samples: int) -> torch.Tensor:
        """Commit one outer round with these local values [num_elements]; the new ones, which must not be changed.

        `samples` is what they stand for since the round before; with zero this sibling only receives. A sibling that
        turns out to have missed a round takes the committed state instead, and its progress since is lost. When nobody
        has trained since the round before, there is no round and the anchor stands. Raises
        RoundError after a bounded time; then nothing has changed, and the progress grows into the next round. Raises
        TensorError for a vector that does not fit.
        """
        before = self.pursuit.outer
        if self._effort is not None:
            raise RoundError("a round is under way already")
        self._check(local)
        if self._given is not before:
            # A call that was cancelled has moved the anchor: what was learned from the one before cannot be told apart.
            samples = 0
        effort = self._effort = Effort(local, samples, asyncio.get_running_loop().time(), self.context.on_lost)
        try:
            await self._pursue(effort)
        except RoundError as error:
            if self.pursuit.outer is before:
                raise
            log.warning("%s; the state that was caught up with counts", error)
        finally:
            self._effort = None
            if self.pursuit.outer.round == before.round:
                self.lobby.give_up(f"{short(self.context.me)} gave up round {before.round}")
            self._settle()
        return self._give(self.pursuit.outer).anchor

    def heard_from(self, peer: PeerId) -> None:
        """A sibling has called: it is not lost, whatever it looked like."""
        if self._effort is not None:
            self._effort.heard_from(peer)

    async def _pursue(self, effort: Effort) -> None:
        seconds = self.context.waits.total
        try:
            async with asyncio.timeout(seconds):
                await self.pursuit.pursue(effort)
        except TimeoutError:
            raise RoundError(f"{self.pursuit.round} was given up after {seconds:g} s; last: {self.reason}") from None

    def _adopt(self, state: OuterState) -> OuterState:
        self.committed.adopt(state)
        self._settle()
        return self._give(state)

    def _give(self, state: OuterState) -> OuterState:
        self._given = state
        return state

    def _settle(self) -> None:
        state = self.pursuit.outer
        self.reason.set(f"stage {self.context.stage}: {state.round} rounds committed", logging.DEBUG)

    def _check(self, local: torch.Tensor) -> None:
        expected = (self.context.num_elements,)
        if tuple(local.shape) != expected or local.dtype != torch.float32 or local.device.type != "cpu":
            raise TensorError(
                f"local values must be float32 {expected} on the CPU, "
                f"got {str(local.dtype).removeprefix('torch.')} {tuple(local.shape)} on {local.device}"
            )
