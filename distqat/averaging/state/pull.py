"""Chunks of one state from several donors at once: a stream to each, all fed from one `Haul`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from distqat.averaging import messages
from distqat.averaging.context import LOOK_INTERVAL, Context, Sibling
from distqat.averaging.state.haul import Haul
from distqat.averaging.state.hoard import Hoard
from distqat.averaging.state.messages import FETCH, Fetch
from distqat.averaging.state.replay import limit
from distqat.averaging.state.snapshot import ChunkRef
from distqat.errors import DistqatError, MessageError, StaleError
from distqat.ids import PeerId, short
from distqat.rpc.transport import Stream

log = logging.getLogger(__name__)


@dataclass
class Pulled:
    """What became of the donors that give no more."""

    lost: dict[PeerId, str] = field(default_factory=dict)
    """They broke off, or gave nothing for too long; may be asked again if they gave something before."""
    refused: dict[PeerId, str] = field(default_factory=dict)
    """What they gave is wrong; not to be asked again."""
    moved: dict[PeerId, str] = field(default_factory=dict)
    """They do not hold this state any more."""
    given: dict[PeerId, int] = field(default_factory=dict)
    """Chunks by donor."""


class Pull:
    """One manifest's chunks on their way here."""

    def __init__(self, context: Context, hoard: Hoard) -> None:
        assert hoard.manifest is not None
        self.context = context
        self.hoard = hoard
        self.digest = hoard.manifest.digest
        self.haul = Haul(sorted(hoard.missing))
        self.pulled = Pulled(given=self.haul.given)
        self._changed = asyncio.Event()  # Set, and replaced, when a donor may have something to do again.

    def __repr__(self) -> str:
        return f"<Pull of {self.hoard.manifest}: {self.haul!r}>"

    async def run(self, donors: Sequence[Sibling]) -> Pulled:
        """Until all chunks are here, or no donor is left; what is missing then is missing in the hoard too."""
        async with asyncio.TaskGroup() as group:
            tasks = {group.create_task(self._serve(donor), name=f"state from {donor.peer}") for donor in donors}
            while tasks and not self.haul.is_done:
                _, tasks = await asyncio.wait(tasks, timeout=LOOK_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                # Who is slower than the others has chunks under way that nobody waits for.
                task.cancel()
        return self.pulled

    async def _serve(self, donor: Sibling) -> None:
        """One donor; whatever goes wrong with it costs its chunks under way only. Never fails."""
        name = short(donor.peer)
        try:
            await self._take_from(donor)
        except StaleError as error:
            self.pulled.moved[donor.peer] = error.reason
        except MessageError as error:
            self.pulled.refused[donor.peer] = error.reason
            log.warning("the state from %s is refused: %s", name, error)
        except DistqatError as error:
            self.pulled.lost[donor.peer] = error.reason
            log.info("no more state from %s: %s", name, error)

    async def _take_from(self, donor: Sibling) -> None:
        transport = self.context.transport
        async with transport.stream(donor.endpoint, FETCH) as stream:
            self.haul.join(donor.peer)
            try:
                while not self.haul.is_done:
                    await self._ask(donor, stream)
                    if self.haul.is_waiting_for(donor.peer):
                        await self._take(donor, stream)
                    else:
                        await self._until_changed()
            finally:
                self.haul.leave(donor.peer)
                self._wake()
            await stream.finish()

    async def _ask(self, donor: Sibling, stream: Stream) -> None:
        """For as many chunks as it is given at a time."""
        loop = asyncio.get_running_loop()
        while (chunk := self.haul.next(donor.peer, loop.time())) is not None:
            request = Fetch(self.context.run, self.context.stage, self.digest, chunk)
            async with limit(self.context, donor):
                await stream.send(messages.encode(request))

    async def _take(self, donor: Sibling, stream: Stream) -> None:
        async with limit(self.context, donor):
            frame = await stream.receive()
        chunk, data = messages.unframe(ChunkRef, frame)
        if not self.haul.expects(donor.peer, chunk):
            raise MessageError(f"{short(donor.peer)} sends {chunk}, for which it was not asked")
        self.hoard.add(chunk, data)
        self.haul.arrived(donor.peer, chunk, asyncio.get_running_loop().time())
        if self.haul.is_done:
            self._wake()

    async def _until_changed(self) -> None:
        try:
            async with asyncio.timeout(LOOK_INTERVAL):
                await self._changed.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
