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
from collections.abc import Callable
from functools import partial

from distqat.averaging.averager import Averager
from distqat.averaging.context import Sibling
from distqat.errors import StateError
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
    ) -> None:
        self.context = context
        self.stage = stage
        self.device = device
        self.averager = averager
        self.siblings = siblings
        self.reason = reason

    def __repr__(self) -> str:
        return f"<Newcomer to {self.stage.name}: {self.reason}>"

    async def get_state(self) -> None:
        """Returns once the stage holds what the run has committed, or fresh numbers if that is nothing."""
        self.reason.set("looking for siblings")
        await self.context.directory.wait_synced()
        while True:
            if await self._try():
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _try(self) -> bool:
        donors = [sibling for sibling in self.siblings() if sibling.ready and sibling.round > 0]
        if donors:
            return await self._take_from(donors)
        if self._has_committed():
            self.reason.set(
                f"waiting: the run has committed rounds, and nobody holds {self.stage.name}; an expert that does must "
                "come back, or the run begin again under another run.name"
            )
            return False
        fragments = range(len(self.stage.fragments))
        await self.averager.found(await self.device.run(partial(self.stage.gather, fragments)))
        return True

    async def _take_from(self, donors: list[Sibling]) -> bool:
        try:
            state = await self.averager.catch_up(donors)
        except StateError as error:
            self.reason.set(f"waiting: {error.reason}", logging.WARNING)
            return False
        await self.device.run(partial(self.stage.scatter, range(len(state.parts)), state.anchor))
        return True

    def _has_committed(self) -> bool:
        config = self.context.run.config
        assert config is not None
        return self.context.history.has_committed(config.id, self.context.directory.snapshot())
