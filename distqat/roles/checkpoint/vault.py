"""The checkpoints of an expert: which one it is to load, and what goes into further ones."""

from __future__ import annotations

from collections.abc import Callable

from distqat.config import RunConfig
from distqat.data.claims import LedgerSnapshot
from distqat.ids import Endpoint, PeerId, StageIndex
from distqat.model.agreement import Verdict
from distqat.roles.checkpoint.keeper import Keeper, keeper_of
from distqat.roles.checkpoint.saver import Loader, Saver
from distqat.roles.checkpoint.words import CheckpointStatus, Load
from distqat.roles.context import RoleContext
from distqat.roles.seat import Seat


class Vault:
    """Outlives the seats of an expert."""

    def __init__(self, context: RoleContext, config: RunConfig) -> None:
        self._context = context
        self._config = config
        self._keeper: Keeper = keeper_of(context, config)
        self._wanted: tuple[StageIndex, Load] | None = None  # What the client wants to be loaded.
        self._loaded: tuple[StageIndex, Load] | None = None  # The last one that was.

    def __repr__(self) -> str:
        return f"<Vault of {self._keeper!r}, to load: {self._wanted}>"

    def status(self) -> CheckpointStatus:
        """What is held."""
        return self._keeper.status()

    def books(self) -> LedgerSnapshot | None:
        """Those of the run that lie beside the checkpoints."""
        return self._keeper.books.newest if self._keeper.books is not None else None

    async def open(self) -> None:
        """Find what is there; that there is anything says that the run has committed rounds."""
        await self._keeper.scan()
        if self._keeper.checkpoints:
            self._context.history.remember(self._config.id)

    async def work(self) -> None:
        """Write what is offered, for ever."""
        await self._keeper.work()

    async def wait_idle(self) -> None:
        """Until nothing is being written."""
        await self._keeper.wait_idle()

    def want(self, stage: StageIndex, load: Load) -> None:
        """The stage is to come out of that checkpoint as soon as it has a seat."""
        self._wanted = stage, load

    def forget(self) -> None:
        """Nothing is to be loaded any more: something else was ordered."""
        self._wanted = None

    def has_loaded(self, stage: StageIndex, load: Load) -> bool:
        """Whether that one was the last; the order may come again until the client has heard of it."""
        return self._loaded == (stage, load)

    async def take(self, seat: Seat) -> int | None:
        """Load what the client wants of this stage, once; the rounds that are in it, None if it wants nothing.

        Raises StateError; then the stage is as it was.
        """
        wanted = self._wanted
        if wanted is None or wanted[0] != seat.stage.index:
            return None
        await Loader(self._keeper, seat, self._mirrors()).take(wanted[1])
        self._loaded, self._wanted = wanted, None
        return wanted[1].round

    def saver(self, seat: Seat, verdict: Callable[[], Verdict]) -> Saver:
        """Makes checkpoints of the seat."""
        return Saver(self._config, self._context.me, seat, self._keeper, verdict)

    def _mirrors(self) -> dict[PeerId, Endpoint]:
        """Those alive."""
        peers = self._context.directory.snapshot().peers
        return {peer: entry.record.endpoint for peer, entry in peers.items() if "mirror" in entry.record.roles}
