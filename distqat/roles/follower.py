"""A spare that keeps a stage warm: what its siblings commit, round by round, and what one of them has learned since.

So a promotion moves no parameters. It takes no part in rounds and is nobody's donor: it has no seat.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from distqat.aio import Backoff
from distqat.averaging import messages
from distqat.averaging.context import Sibling
from distqat.averaging.group import Stale
from distqat.averaging.outer import OuterState
from distqat.averaging.state.donor import AWAIT_SECONDS
from distqat.averaging.state.messages import AWAIT, Await, News
from distqat.errors import DistqatError, StaleError
from distqat.ids import PeerId, short
from distqat.roles.context import RoleContext
from distqat.roles.copies.copy import Copy, Layout
from distqat.roles.copies.taking import take
from distqat.roles.holding import Holding
from distqat.rpc.transport import Deadline
from distqat.telemetry import Reason

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks for a sibling while there is none."""


@dataclass
class _Copied:
    """A copy, from whom and when."""

    copy: Copy
    peer: PeerId
    at: float


@dataclass
class Follower:
    """Follows one stage."""

    context: RoleContext
    holding: Holding
    reason: Reason
    copy_seconds: float
    """Between two copies of local state; 0: none is taken."""
    _is_behind: bool = False  # Siblings have committed what could not be had from them.
    _copied: _Copied | None = None  # The latest copy.
    _shunned: dict[PeerId, float] = field(default_factory=dict)  # Siblings that failed, and until when.

    def __repr__(self) -> str:
        return f"<Follower of {self.holding.stage.name}: {self.describe()}>"

    @property
    def outer(self) -> OuterState | None:
        """What is committed, as far as it is here."""
        return self.holding.averager.outer

    @property
    def is_warm(self) -> bool:
        """Whether a promotion would move no parameters."""
        return self.outer is not None and not self._is_behind and self.is_founded

    @property
    def is_founded(self) -> bool:
        """Whether what is here is the truth of the run: not fresh numbers of one that has committed rounds since."""
        if self.outer is None or self.outer.round > 0:
            return self.outer is not None
        run = self.holding.circle.run
        return not self.context.history.has_committed(run, self.context.directory.snapshot())

    @property
    def copy(self) -> Copy | None:
        """The latest copy of local state; None while there is none."""
        return self._copied.copy if self._copied is not None else None

    @property
    def copied_from(self) -> PeerId | None:
        """Whose local state that is."""
        return self._copied.peer if self._copied is not None else None

    def describe(self) -> str:
        """What it holds, in one sentence."""
        stage = f"stage {self.holding.stage.index} of {self.holding.stage.num_stages}"
        if self.outer is None:
            return f"following {stage}: waiting for what is committed"
        text = f"follows {stage}: round {self.outer.round}"
        if self._copied is not None:
            age = asyncio.get_running_loop().time() - self._copied.at
            text += f", copy of step {self._copied.copy.state.version} from {short(self._copied.peer)}, {age:.1f} s old"
        return text

    async def follow(self) -> None:
        """Keep up with the siblings, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_up(), name=f"following {self.holding.stage.name}")
            if self.copy_seconds:
                group.create_task(self._keep_copying(), name=f"copying {self.holding.stage.name}")

    async def look(self, donor: Sibling) -> None:
        """Come to what the donor has committed. Raises DistqatError."""
        averager = self.holding.averager
        if self.outer is None:
            await averager.catch_up([donor, *self._others(donor)])
            return
        news = await self._news(donor, "")
        if news.digest != self.outer.digest:
            await self._move(donor, news)

    async def _keep_up(self) -> None:
        backoff = Backoff(0.1, 2.0)
        while True:
            self.reason.set(self.describe(), logging.DEBUG)
            donor = self._donor()
            if donor is None:
                await self._until_changed()
                continue
            try:
                await self._follow(donor)
                backoff.reset()
            except DistqatError as error:
                log.info("%s cannot be followed at %s: %s", self.holding.stage.name, short(donor.peer), error)
                self._shunned[donor.peer] = asyncio.get_running_loop().time() + backoff.most
                await asyncio.sleep(backoff.next())

    async def _follow(self, donor: Sibling) -> None:
        """Until the donor has committed something else than what is here, and that is here; or for a while."""
        if self.outer is None:
            await self.holding.averager.catch_up([donor, *self._others(donor)])
            return
        news = await self._news(donor, self.outer.digest)
        if news.digest == self.outer.digest:
            return
        if news.round < self.outer.round:
            raise StaleError(f"it has committed {news.round} rounds, this one holds {self.outer.round}")
        self._is_behind = True
        await self._move(donor, news)
        self._is_behind = False

    async def _move(self, donor: Sibling, news: News) -> None:
        await self.holding.averager.keep_up(Stale(donor.peer, donor.endpoint, news.round, news.digest))

    async def _news(self, donor: Sibling, digest: str) -> News:
        """What the donor has committed, as soon as it is something else; or after a while."""
        circle = self.holding.circle
        request = messages.encode(Await(circle.run, circle.stage, digest))
        deadline = Deadline.after(AWAIT_SECONDS + circle.waits.answer)
        return messages.decode(News, await circle.transport.call(donor.endpoint, AWAIT, request, deadline))

    async def _keep_copying(self) -> None:
        holding, loop = self.holding, asyncio.get_running_loop()
        layout = Layout((await holding.workshop.device.run(holding.stage.local_state)).tensors)
        while True:
            await asyncio.sleep(self.copy_seconds)
            target = self._target()
            if target is None or self.outer is None:
                continue
            try:
                async with asyncio.timeout(holding.circle.waits.total):
                    copy = await take(holding.circle, layout, target)
            except (TimeoutError, DistqatError) as error:
                log.info("no copy of %s from %s: %s", holding.stage.name, short(target.peer), error or "too slow")
                continue
            self._copied = _Copied(copy, target.peer, loop.time())
            self.reason.set(self.describe(), logging.DEBUG)

    def _ready(self) -> list[Sibling]:
        return list(self.holding.circle.ready().values())

    def _others(self, donor: Sibling) -> list[Sibling]:
        return [sibling for sibling in self._ready() if sibling.peer != donor.peer]

    def _donor(self) -> Sibling | None:
        """Whom to follow: the most advanced of those that have not failed just now."""
        now = asyncio.get_running_loop().time()
        found = [sibling for sibling in self._ready() if self._shunned.get(sibling.peer, now) <= now]
        return max(found, key=lambda sibling: (sibling.round, sibling.peer), default=None)

    def _target(self) -> Sibling | None:
        """Whose local state is copied: spares that follow the same stage take different ones."""
        ready = self._ready()
        experts = self.context.directory.snapshot().experts
        mine = self.holding.stage.index
        followers = sorted(peer for peer, entry in experts.items() if entry.record.follows == mine)
        place = followers.index(self.context.me) if self.context.me in followers else 0
        return sorted(ready, key=lambda sibling: sibling.peer)[place % len(ready)] if ready else None

    async def _until_changed(self) -> None:
        directory = self.context.directory
        await directory.wait_changed(directory.snapshot().version, Deadline.after(LOOK_SECONDS))
