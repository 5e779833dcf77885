"""How an expert that was given a stage comes to its state.

It takes the committed state of its siblings. Only a run that has never committed a round may begin from fresh numbers:
else a lone newcomer would quietly become the truth.

Its inner optimizer begins anew, and its first contribution weighs as many samples as it has trained on since it joined:
neither a sibling's moments, nor a slowly growing learning rate, nor a first round without weight learned faster
(`bench/newcomer.py`, docs/design/flow-b.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from distqat.averaging.averager import Averager
from distqat.averaging.context import Sibling
from distqat.averaging.state.messages import DESCRIBE
from distqat.errors import StateError
from distqat.events import Kind, Subject
from distqat.ids import short
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.roles.context import RoleContext
from distqat.telemetry import Reason

LOOK_SECONDS = 0.5
"""Between two looks for a donor."""


class Newcomer:
    """A stage without state, and what is needed to get it."""

    def __init__(
        self,
        context: RoleContext,
        stage: Stage,
        device: Device,
        averager: Averager,
        siblings: Callable[[], list[Sibling]],
        reason: Reason,
        load: Callable[[], Awaitable[int | None]],
    ) -> None:
        self.context = context
        self.stage = stage
        self.device = device
        self.averager = averager
        self.siblings = siblings
        self.reason = reason
        self.load = load  # The rounds in a checkpoint that was loaded because the client wants it; None: it wants none.
        self._began = 0.0  # When it began to look for its state.
        self._has_failed = False  # The last donors could not give it.
        self._received = 0  # Bytes of state that had come by then.

    def __repr__(self) -> str:
        return f"<Newcomer to {self.stage.name}: {self.reason}>"

    async def get_state(self) -> None:
        """Returns once the stage holds what the run has committed, or fresh numbers if that is nothing."""
        self.reason.set("looking for siblings")
        self._began, self._received = asyncio.get_running_loop().time(), self._state_bytes()
        await self.context.directory.wait_synced()
        while True:
            if await self._try():
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _try(self) -> bool:
        try:
            rounds = await self.load()
        except StateError as error:
            self.reason.set(f"waiting: {error.reason}", logging.WARNING)
            return False
        if rounds is not None:
            self._tell("checkpoint", f"{self.stage.name}: goes on from the checkpoint of round {rounds}", rounds)
            return True
        donors = [sibling for sibling in self.siblings() if sibling.ready and sibling.round > 0]
        if donors:
            return await self._take_from(donors)
        if self.context.resumes and not self._has_committed():
            self.reason.set(f"waiting: told to go on with the run, and nobody holds {self.stage.name} yet")
            return False
        if self._has_committed():
            self.reason.set(
                f"waiting: the run has committed rounds, and nobody holds {self.stage.name}; an expert that does must "
                "come back, or the run begin again under another run.name"
            )
            return False
        fragments = range(len(self.stage.fragments))
        await self.averager.found(await self.device.run(partial(self.stage.gather, fragments)))
        self._tell("founded", f"{self.stage.name}: begins from fresh numbers: the run has committed nothing", 0)
        return True

    async def _take_from(self, donors: list[Sibling]) -> bool:
        names = " ".join(short(donor.peer) for donor in donors)
        if not self._has_failed:
            # Else the fault stays to be seen, and is not logged at each try.
            self.reason.set(f"catching up with {self.stage.name}: taking what is committed from {names}")
        try:
            state = await self.averager.catch_up(donors)
        except StateError as error:
            self._has_failed = True
            self.reason.set(f"waiting: {error.reason}", logging.WARNING)
            return False
        await self.device.run(partial(self.stage.scatter, range(len(state.parts)), state.anchor))
        self._tell("caught up", f"{self.stage.name}: has the state of round {state.round}, from {names}", state.round)
        return True

    def _tell(self, how: str, text: str, number: int) -> None:
        seconds, size = asyncio.get_running_loop().time() - self._began, self._state_bytes() - self._received
        subject = Subject(stage=self.stage.name, how=how, round=number, seconds=seconds, bytes=size)
        self.context.telemetry.events.record(Kind.STATE_OBTAINED, text, subject)

    def _state_bytes(self) -> int:
        return sum(count.received for flow, count in self.context.transport.traffic().items() if flow == DESCRIBE.flow)

    def _has_committed(self) -> bool:
        config = self.context.run.config
        assert config is not None
        return self.context.history.has_committed(config.id, self.context.directory.snapshot())
