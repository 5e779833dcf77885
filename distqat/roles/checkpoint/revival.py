"""The client's part: waits for those who hold checkpoints, rolls the books back, and says who loads what.

It acts when nobody alive holds the state of a stage. If that is so of all stages the swarm was down: the run goes back
to one moment, and so do its books, before anybody is told to load. If only some stages are lost, they are loaded and
the books stay: the others have gone on, and meet what is older in the next round, as they do with any newcomer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from distqat.config import RunConfig
from distqat.data.ledger import Ledger
from distqat.errors import DistqatError
from distqat.events import Kind, Subject
from distqat.ids import PeerId, StageIndex, short
from distqat.roles.checkpoint.cadence import reach
from distqat.roles.checkpoint.choice import Choice, Holder, Revival, choose, uncovered
from distqat.roles.checkpoint.held_books import take_books
from distqat.roles.checkpoint.words import Checkpoint, Load
from distqat.roles.context import RoleContext
from distqat.roles.leases import Leases
from distqat.roles.plan import Form, View
from distqat.roles.remote import Remote
from distqat.roles.status import ExpertStatus, RoleStatus

log = logging.getLogger(__name__)

QUIET_LEASES = 1.0
"""Leases without news of further checkpoints after which those that are here, if they fit together, are all."""

LOOK_THROUGH_SECONDS = 300.0
"""For which those are waited for at most who are here and still look through their checkpoints."""

MOST_BEHIND = 4
"""Checkpoints that are given up at most for a moment at which all stages fit together."""

GRACE_LEASES = 5.0
"""Leases for which better ones are waited for, when those that are here do not fit together."""


class Reviver:
    """Brings the stages back that nobody alive holds."""

    def __init__(
        self,
        context: RoleContext,
        config: RunConfig,
        ledger: Ledger,
        leases: Leases,
        save: Callable[[], Awaitable[None]],
    ) -> None:
        self.reason = ""
        self._revivals: tuple[Revival, ...] = ()  # Pipelines that are to be formed where earlier ones were.
        self._context = context
        self._config = config
        self._ledger = ledger
        self._leases = leases
        self._save = save  # Writes the books.
        self._reach = partial(reach, config.sync, steps=MOST_BEHIND * config.checkpoint.steps)
        self.is_whole = False  # All stages were lost, and the run goes back to one moment.
        self._is_unfinished = False  # The books are back at a moment at which not all stages are yet.
        self._choice: Choice | None = None  # What is being loaded; None while nothing is.
        self._seen: frozenset[tuple[PeerId, int, int, str]] = frozenset()  # Checkpoints that are here.
        self._news = 0.0  # When that changed last.
        self._since: float | None = None  # When a stage was first found without anybody who holds it.

    def __repr__(self) -> str:
        return f"<Reviver {self._choice or 'at rest'}: {self.reason}>"

    async def act(self, has_trainer: bool) -> bool:
        """Look, and do what is next. True: the swarm is being brought back, and nothing else is to be planned."""
        now = asyncio.get_running_loop().time()
        experts, mirrors = self._roles("expert"), self._roles("mirror")
        if self._choice is not None:
            return await self._carry_on(self._choice, experts, mirrors)
        if self._revivals and not has_trainer:
            self.reason = "waiting: no trainer"
            return True
        holders = _holders(experts, mirrors)
        missing = self._missing(experts)
        if self._is_unfinished or (missing and self._is_half_loaded(experts, holders)):
            missing = list(range(self._config.model.stages))
        if not missing or not any(holder.checkpoints for holder in holders):
            self._since, self.is_whole = None, False
            self._fold(holders, asyncio.get_running_loop().time())
            return False
        self._since = now if self._since is None else self._since
        self._note(holders, now)
        self.is_whole = len(missing) == self._config.model.stages
        able = [holder for holder in holders if holder.is_mirror or not _serves(experts[holder.peer], missing)]
        choice = choose(able, missing, self._reach)
        searching = self._searching(experts, mirrors, now)
        if choice is None or searching or not self._is_time(choice, now):
            self.reason = searching or self._why(able, missing, choice)
            return self.is_whole
        if self.is_whole:
            statuses = self._leases.statuses
            away = await take_books(self._ledger, statuses, self._context, self._config.id, choice.steps)
            if away:
                self.reason = f"waiting: the books are to be had of {', '.join(map(short, away))}"
                return True
        await self._begin(choice)
        return True

    def take(self, view: View) -> list[Form]:
        """Pipelines to be formed where earlier ones were, each once; one of which an expert is lost is not."""
        experts = {expert.peer: expert for expert in view.experts if expert.is_ready and expert.stage is not None}
        taken, self._revivals = self._revivals, ()
        forms = []
        for index, revival in enumerate(taken):
            if experts.keys() >= set(revival.peers):
                route = tuple(experts[peer].seat for peer in revival.peers)
                trainer = view.trainers[index % len(view.trainers)]
                why = f"goes on where {revival.was} was at step {revival.begin.step}"
                forms.append(Form(None, route, trainer, why, revival.begin))
        return forms

    def _roles(self, name: str) -> Mapping[PeerId, RoleStatus]:
        """What those who live and have that role in this run say of it."""
        found = {}
        for peer, status in sorted(self._leases.statuses.items()):
            role = status.role(name)
            if status.run == self._config.id and role is not None and role.phase not in ("failed", "draining"):
                found[peer] = role
        return found

    def _missing(self, experts: Mapping[PeerId, RoleStatus]) -> list[int]:
        """Stages whose committed state nobody alive holds."""
        facts = [role.expert for role in experts.values() if role.expert is not None]
        held = {fact.stage for fact in facts if _is_held(fact)}
        warm = {fact.follows for fact in facts if fact.warm}
        return [stage for stage in range(self._config.model.stages) if stage not in held | warm]

    def _is_half_loaded(self, experts: Mapping[PeerId, RoleStatus], holders: Sequence[Holder]) -> bool:
        """Whether a client before this one has died while the whole run was loaded: somebody holds a stage exactly as a
        checkpoint has it, which no round leaves behind, and no pipeline is there yet."""
        roles = (role for s in self._leases.statuses.values() if s.run == self._config.id for role in s.roles)
        if any(role.pipelines for role in roles):
            return False
        loaded = {(fact.stage, fact.digest) for role in experts.values() if (fact := role.expert) and _is_held(fact)}
        return any((held.stage, held.digest) in loaded for holder in holders for held in holder.checkpoints)

    def _fold(self, holders: Sequence[Holder], now: float) -> None:
        """The books need not remember which samples were of steps that all checkpoints have."""
        if not self._config.checkpoint.steps:
            self._ledger.forget(None)
        elif holders and self._note(holders, now):
            cuts = [{last.pipeline: last.step for last in c.cut} for h in holders for c in h.checkpoints]
            if cuts:
                self._ledger.forget({name: min(cut.get(name, 0) for cut in cuts) for name in cuts[0]})

    def _note(self, holders: Sequence[Holder], now: float) -> bool:
        """Whether other checkpoints are here than at the last look."""
        seen = frozenset((h.peer, held.stage, held.round, held.digest) for h in holders for held in h.checkpoints)
        if seen != self._seen:
            self._seen, self._news = seen, now
            return True
        return False

    def _is_time(self, choice: Choice, now: float) -> bool:
        """Whether to wait no longer for those who are not here."""
        assert self._since is not None
        lease = self._leases.seconds
        if not self.is_whole:
            # Who holds the state may only be cut off, for as long as siblings wait for a word of theirs too.
            return now - self._since >= 3 * self._config.sync.max_wait
        return now - self._news >= (QUIET_LEASES if choice.is_best else GRACE_LEASES) * lease

    def _searching(self, experts: Mapping[PeerId, RoleStatus], mirrors: Mapping[PeerId, RoleStatus], now: float) -> str:
        """Why to wait for those who do not know yet what they hold; empty if there is nobody."""
        assert self._since is not None
        late = [peer for found in (experts, mirrors) for peer, role in found.items() if role.checkpoints is None]
        if not late or now - self._since > LOOK_THROUGH_SECONDS:
            return ""
        return f"waiting: some who are here still look through their checkpoints: {', '.join(map(short, late))}"

    def _why(self, holders: Sequence[Holder], missing: Sequence[int], choice: Choice | None) -> str:
        lacking, total = uncovered(holders, missing), self._config.model.stages
        if lacking:
            return f"waiting: nobody who is here has a checkpoint of stage {lacking[0]} of {total}"
        if choice is None:
            return f"waiting: there are too few experts for the {len(missing)} stages that are to be loaded"
        return "waiting for others that hold checkpoints too"

    async def _begin(self, choice: Choice) -> None:
        """The books first: who takes over from a client that dies now finds them at the moment that is loaded."""
        text = choice.describe()
        if self.is_whole:
            freed = self._ledger.roll_back(choice.steps)
            await self._save()
            text += f"; {freed} samples are to be trained again"
            self._revivals, self._is_unfinished = choice.revivals, True
        self._choice, self._since = choice, None
        log.info("%s", text)
        subject = Subject(round=max(choice.rounds), samples=self._ledger.committed)
        self._context.telemetry.events.record(Kind.BOOKS_RESTORED, text, subject)
        self.reason = text

    async def _carry_on(
        self, choice: Choice, experts: Mapping[PeerId, RoleStatus], mirrors: Mapping[PeerId, RoleStatus]
    ) -> bool:
        """Tell those who have not loaded yet. If one of them cannot, all is chosen anew."""
        mirrored = [held for role in mirrors.values() for held in _checkpoints(role)]
        left: list[tuple[PeerId, StageIndex, Load]] = []
        for peer, (stage, load) in choice.loads.items():
            role = experts.get(peer)
            if role is None or role.expert is None:
                return self._give_up(f"{short(peer)} is lost, which was to load stage {stage}")
            if self._has_loaded(role.expert, stage, load):
                continue
            if not any((c.stage, c.digest) == (stage, load.digest) for c in (*_checkpoints(role), *mirrored)):
                return self._give_up(f"nobody who is here can read the checkpoint of stage {stage} any more")
            left.append((peer, stage, load))
        for order in left:
            await self._tell(*order)
        if left:
            self.reason = f"{choice.describe()}; waiting for {', '.join(short(peer) for peer, _, _ in left)}"
            return True
        self._choice, self._is_unfinished = None, False
        return False

    async def _tell(self, peer: PeerId, stage: StageIndex, load: Load) -> None:
        """Once more at the next look, if it was not heard or is not done by then."""
        remote = Remote(self._context.transport, self._leases.statuses[peer].endpoint)
        try:
            await remote.load(self._config.id, stage, load)
        except DistqatError as error:
            log.info("%s was not told to load stage %d: %s", short(peer), stage, error)

    def _has_loaded(self, expert: ExpertStatus, stage: int, load: Load) -> bool:
        """Whether it holds what it was told to. A single stage may have gone on with others that hold it too."""
        is_here = expert.seated and expert.ready and expert.stage == stage
        return is_here and (expert.digest == load.digest or (not self.is_whole and expert.round > load.round))

    def _give_up(self, reason: str) -> bool:
        log.warning("choosing other checkpoints: %s", reason)
        self._choice, self._revivals, self.reason = None, (), f"waiting: {reason}"
        return True


def _is_held(fact: ExpertStatus) -> bool:
    """Whether it holds committed state of its stage."""
    return bool(fact.seated and fact.ready and fact.round)


def _serves(role: RoleStatus, missing: Sequence[int]) -> bool:
    """Whether it holds a stage alive: it is not taken off that for another."""
    return role.expert is not None and _is_held(role.expert) and role.expert.stage not in missing


def _checkpoints(role: RoleStatus) -> tuple[Checkpoint, ...]:
    return role.checkpoints.checkpoints if role.checkpoints is not None else ()


def _holders(experts: Mapping[PeerId, RoleStatus], mirrors: Mapping[PeerId, RoleStatus]) -> list[Holder]:
    """Who may load, and who may give."""
    return [
        *(
            Holder(peer, _checkpoints(role), role.expert.stage if role.expert.pinned else None)
            for peer, role in experts.items()
            if role.expert is not None and role.checkpoints is not None
        ),
        *(Holder(peer, _checkpoints(role), is_mirror=True) for peer, role in mirrors.items()),
    ]
