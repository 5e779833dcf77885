"""Committed state for a sibling that lacks it: by the averages of the rounds that it missed, or as a snapshot.

A sibling that missed a few rounds asks for their averages, which are small, and comes to the same state as the others,
to the bit. One that missed more, or is new, pulls the whole: chunks of one state from all donors that hold it, at once.
Whatever it holds already is not sent: chunks from before a transfer broke, or of fragments that no round has touched.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distqat.averaging import messages
from distqat.averaging.context import Context, Sibling
from distqat.averaging.group import Stale
from distqat.averaging.kept import Kept
from distqat.averaging.outer import OuterState
from distqat.averaging.state.hoard import Hoard
from distqat.averaging.state.messages import DESCRIBE, Describe
from distqat.averaging.state.pull import Pull, Pulled
from distqat.averaging.state.replay import Replay
from distqat.averaging.state.snapshot import Manifest
from distqat.errors import DistqatError, StateError
from distqat.ids import PeerId, short
from distqat.rpc.transport import Deadline

log = logging.getLogger(__name__)

MOST_DONORS = 8
"""Donors that are asked at the same time; the most advanced ones."""

MOST_MOVES = 3
"""Times in a row that a donor may have gone on to another state before it has given anything."""


@dataclass(frozen=True, eq=False)
class Caught:
    """What a sibling that was behind holds now."""

    state: OuterState
    is_replayed: bool
    """Whether it came by the averages of the rounds that were missed: local progress may be carried over then."""
    rounds: tuple[Kept, ...] = ()
    """Those averages; empty after a snapshot."""

    def took_part(self, peer: PeerId) -> bool:
        """Whether what the sibling has learned may be in one of those rounds."""
        return any(peer in missed.members for missed in self.rounds)


async def advance(context: Context, state: OuterState, stale: Stale) -> Caught:
    """From this state to what `stale` offers, or beyond. Raises StateError when no donor could give it."""
    donor = Sibling(stale.donor, stale.endpoint, stale.round, stale.digest, True)
    others = [sibling for sibling in context.ready().values() if sibling.peer != stale.donor]
    donors = [donor, *sorted(others, key=lambda other: (-other.round, other.peer))][:MOST_DONORS]
    if state.round < stale.round <= state.round + context.sync.kept_rounds:
        replay = Replay(context, state)
        if await _replay(replay, donors, stale):
            return Caught(replay.state, True, tuple(replay.rounds))
    return Caught(await _Search(context, donors, stale.round, state).run(), False)


async def fetch(context: Context, donors: Sequence[Sibling], least: int = 0) -> OuterState:
    """The committed state of the most advanced donors, with at least so many rounds. Raises StateError that says what
    is wrong with each."""
    return await _Search(context, [donor for donor in donors if donor.ready], least, None).run()


async def _replay(replay: Replay, donors: Sequence[Sibling], stale: Stale) -> bool:
    """Whether the replay has come to what is offered; each donor goes on where the one before broke off."""
    for donor in donors:
        try:
            await replay.take(donor)
        except DistqatError as error:
            log.debug("no rounds from %s: %s", short(donor.peer), error)
        if replay.state.round >= stale.round:
            break
    digests = {kept.round + 1: kept.digest for kept in replay.rounds}
    if digests.get(stale.round) == stale.digest:
        log.info("replayed %d rounds up to round %d", len(replay.rounds), replay.state.round)
        return True
    return False


class _Search:
    """The way to a whole state: manifests, the chunks of one of them, and again with what donors hold by then."""

    def __init__(self, context: Context, donors: Sequence[Sibling], least: int, own: OuterState | None) -> None:
        self.context = context
        self.least = least
        self.hoard = Hoard(context, own)
        self._donors = {donor.peer: donor for donor in donors}  # That may be asked.
        self._faults: dict[PeerId, str] = {}  # Why the others may not.
        self._moves: Counter[PeerId] = Counter()  # Since a donor has given something.
        self._holders: list[Sibling] = []  # Donors of what is aimed at that may give more of it.

    async def run(self) -> OuterState:
        """Raises StateError when no donor is left, or after `waits.total`."""
        seconds = self.context.waits.total
        try:
            async with asyncio.timeout(seconds):
                while True:
                    state = await self._try()
                    if state is not None:
                        return state
        except TimeoutError:
            raise StateError(f"the state of stage {self.context.stage} was not here after {seconds:g} s") from None

    async def _try(self) -> OuterState | None:
        """Those who hold what is aimed at, once more, or another manifest; None if that is not the end of it."""
        if not self._holders and not await self._aim():
            return None
        holders = self._holders
        if self.hoard.missing:
            pulled = await Pull(self.context, self.hoard).run(holders)
            self._judge(pulled)
            # Who broke off may give more of it: rounds that were committed meanwhile cost nothing while it is held.
            stay = self._donors.keys() - pulled.moved.keys()
            self._holders = [holder for holder in holders if holder.peer in stay]
        if self.hoard.missing:
            return None
        try:
            return await self.hoard.build()
        except StateError as error:
            for holder in holders:
                self._give_up(holder.peer, error.reason)
            self._holders = []
            return None

    async def _aim(self) -> bool:
        """At what the donors hold now; whether there is such a state."""
        if not self._donors:
            raise StateError(self._why())
        found = await self._ask()
        if not found:
            return False
        manifest, self._holders = self._choose(found)
        await self.hoard.aim(manifest)
        return True

    async def _ask(self) -> dict[PeerId, Manifest]:
        """What the most advanced donors hold; who does not answer is given up."""
        chosen = sorted(self._donors.values(), key=lambda donor: (-donor.round, donor.peer))[:MOST_DONORS]
        found: dict[PeerId, Manifest] = {}

        async def ask(donor: Sibling) -> None:
            try:
                found[donor.peer] = await self._describe(donor)
            except DistqatError as error:
                self._give_up(donor.peer, error.reason)

        async with asyncio.TaskGroup() as group:
            for donor in chosen:
                group.create_task(ask(donor), name=f"manifest from {donor.peer}")
        return found

    async def _describe(self, donor: Sibling) -> Manifest:
        """What the donor holds, after a look at whether it can be the state of this stage."""
        context = self.context
        request = messages.encode(Describe(context.run, context.stage, self.least, donor.digest))
        deadline = Deadline.after(context.waits.answer)
        answer = await context.transport.call(donor.endpoint, DESCRIBE, request, deadline)
        manifest = messages.decode(Manifest, answer)
        manifest.check(context.shapes)
        return manifest

    def _choose(self, found: dict[PeerId, Manifest]) -> tuple[Manifest, list[Sibling]]:
        """The most advanced state, then the one that most hold, and who holds it."""
        votes = Counter(found.values())
        best = max(votes, key=lambda manifest: (manifest.round, votes[manifest], manifest.digest))
        return best, [self._donors[peer] for peer, manifest in found.items() if manifest == best]

    def _judge(self, pulled: Pulled) -> None:
        """Who may be asked again: each time there has to be less to do."""
        for peer in pulled.given:
            del self._moves[peer]
        self._moves.update(pulled.moved.keys() - pulled.given.keys())
        for peer, reason in pulled.moved.items():
            if self._moves[peer] >= MOST_MOVES:
                self._give_up(peer, reason)
        for peer, reason in pulled.lost.items():
            if peer not in pulled.given:
                self._give_up(peer, reason)
        for peer, reason in pulled.refused.items():
            self._give_up(peer, reason)

    def _give_up(self, peer: PeerId, reason: str) -> None:
        self._donors.pop(peer, None)
        self._faults[peer] = reason

    def _why(self) -> str:
        faults = "; ".join(f"{short(peer)}: {reason}" for peer, reason in self._faults.items())
        return f"no donor of stage {self.context.stage} ({faults or 'none is known'})"
