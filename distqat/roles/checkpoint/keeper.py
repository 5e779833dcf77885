"""The checkpoints of one daemon: found at its start, written beside training, the oldest removed.

Nothing here ever stops training. What cannot be written is said in the status, and the next one is tried; what cannot
be read is refused by name, and the next older one counts.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from distqat.config import RunConfig
from distqat.errors import StateError
from distqat.event_log import EventLog
from distqat.events import Kind, Subject
from distqat.ids import RunId, short
from distqat.roles.checkpoint import files, places
from distqat.roles.checkpoint.files import Manifest
from distqat.roles.checkpoint.held_books import HeldBooks, books_of_client
from distqat.roles.checkpoint.words import Checkpoint, CheckpointStatus
from distqat.roles.context import RoleContext

log = logging.getLogger(__name__)

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors of a checkpoint, by the file in which they lie."""


@dataclass
class _Found:
    """What lies on the disk."""

    folders: dict[Path, Checkpoint] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    newest: float = 0.0  # When the newest was written, on the clock of the disk; 0 if there is none.


class Keeper:
    """Writes and reads the checkpoints of one run in one folder."""

    def __init__(
        self,
        root: Path,
        run: RunId,
        peer: str,
        most: int,
        books: HeldBooks | None = None,
        events: EventLog | None = None,
    ) -> None:
        self.events = events if events is not None else EventLog()  # Told of what becomes of checkpoints.
        self._root = root
        self._run = run
        self._peer = peer
        self._most = most  # Of each stage; the oldest are removed.
        self.books = books  # Those of the run; None: they are not kept.
        self._folders: dict[Path, Checkpoint] = {}  # Checkpoints that are whole.
        self._written = 0.0  # When the newest was, on the clock of the disk; 0: there is none.
        self._fault = ""
        self._jobs: dict[int, tuple[Manifest, Groups]] = {}  # By stage: waits to be written, or is being written.
        self._offered = asyncio.Event()  # Set while there is a job.
        self._done = asyncio.Event()  # Set while there is none.

    def __repr__(self) -> str:
        return f"<Keeper of {len(self._folders)} checkpoints in {self._root}>"

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Of all that are whole, the newest first; each once, however many copies there are."""
        held = {(h.stage, h.round, h.digest, h.local): h for h in self._folders.values()}
        return tuple(sorted(held.values(), key=lambda h: (-h.round, h.stage, h.digest)))

    def status(self) -> CheckpointStatus:
        """For people, and for the client that looks for something to go on from."""
        age = max(0.0, time.time() - self._written) if self._written else 0.0
        num_claims = self.books.num_claims if self.books is not None else 0
        return CheckpointStatus(self.checkpoints, age, self._fault, num_claims)

    async def scan(self) -> None:
        """Find what is there; each file is looked at to its last byte."""
        found = await asyncio.to_thread(_find, self._root, self._run)
        self._folders, self._written = found.folders, found.newest
        if self.books is not None:
            await self.books.find()
        self._fault = "; ".join(found.faults)
        for fault in found.faults:
            log.warning("checkpoint %s: the next older one counts", fault)
            self.events.record(Kind.CHECKPOINT_REFUSED, f"checkpoint {fault}", Subject())
        if found.folders:
            log.info("found %d checkpoints in %s", len(found.folders), self._root)

    def is_busy(self, stage: int) -> bool:
        """Whether one of the stage is still being written; another one of it is not taken then."""
        return stage in self._jobs

    def offer(self, manifest: Manifest, groups: Groups) -> None:
        """Write it as soon as may be, beside whatever goes on; not while one of its stage is being written."""
        if not self.is_busy(manifest.checkpoint.stage):
            self._jobs[manifest.checkpoint.stage] = manifest, groups
            self._done.clear()
            self._offered.set()

    async def wait_idle(self) -> None:
        """Until nothing is being written."""
        while self._jobs:
            await self._done.wait()

    async def work(self) -> None:
        """Write what is offered, for ever."""
        while True:
            await self._offered.wait()
            stage, job = next(iter(self._jobs.items()))
            try:
                await self._write(*job)
            finally:
                del self._jobs[stage]
                if not self._jobs:
                    self._offered.clear()
                    self._done.set()

    async def _write(self, manifest: Manifest, groups: Groups) -> None:
        held = manifest.checkpoint
        if self.books is not None:
            await self.books.renew(_steps(held), [_steps(other) for other in self._folders.values()])
        try:
            folder = await asyncio.to_thread(files.write, self._root, manifest, groups)
        except StateError as error:
            self._fault = f"checkpoint of round {held.round} failed: {error.reason}; {self._last_good(held.stage)}"
            log.warning("%s", self._fault)
            self._tell(Kind.CHECKPOINT_FAILED, self._fault, held)
            return
        self._folders[folder] = held
        self._written, self._fault = time.time(), ""
        gone = await asyncio.to_thread(_prune, folder, self._peer, held.round, self._most)
        self._folders = {path: kept for path, kept in self._folders.items() if path not in gone}
        log.info("checkpoint of stage %d after round %d", held.stage, held.round)
        self._tell(Kind.CHECKPOINT_WRITTEN, f"checkpoint of stage {held.stage} after round {held.round}", held)

    def _tell(self, kind: Kind, text: str, held: Checkpoint) -> None:
        self.events.record(kind, text, Subject(stage=str(held.stage), round=held.round))

    def _last_good(self, stage: int) -> str:
        rounds = [held.round for held in self._folders.values() if held.stage == stage]
        return f"the last good one is of round {max(rounds)}" if rounds else "there is none yet"

    async def read(self, stage: int, number: int, digest: str) -> tuple[Manifest, Groups]:
        """The checkpoint of that stage, round and digest. Raises StateError; what cannot be read is offered no more."""
        wanted = (stage, number, digest)
        for folder, held in list(self._folders.items()):
            if (held.stage, held.round, held.digest) != wanted:
                continue
            try:
                return await asyncio.to_thread(files.read, folder)
            except StateError as error:
                del self._folders[folder]
                self._fault = error.reason
                log.warning("checkpoint %s", error.reason)
                self._tell(Kind.CHECKPOINT_REFUSED, f"checkpoint {error.reason}", held)
        raise StateError(self._fault or f"no checkpoint of stage {stage} after round {number} is here")

    def refuse(self, stage: int, digest: str, reason: str) -> None:
        """It can be read, and is of no use: it is offered no more."""
        for held in [h for h in self._folders.values() if (h.stage, h.digest) == (stage, digest)][:1]:
            self._tell(Kind.CHECKPOINT_REFUSED, reason, held)
        self._folders = {f: h for f, h in self._folders.items() if (h.stage, h.digest) != (stage, digest)}
        self._fault = reason
        log.warning("checkpoint of stage %d: %s", stage, reason)


def keeper_of(context: RoleContext, config: RunConfig) -> Keeper:
    """The keeper of a daemon for that run."""
    daemon = context.settings.daemon
    root = places.root_of(daemon, context.state_dir)
    books = HeldBooks(places.books_file(root, config.id, context.me), books_of_client(context, config.id))
    return Keeper(root, config.id, context.me, daemon.checkpoints_kept, books, context.telemetry.events)


def _find(root: Path, run: RunId) -> _Found:
    found = _Found()
    for folder in places.folders(root, run):
        try:
            manifest = files.verify(folder)
            if manifest.run != run:
                raise StateError(f"{folder.name} is of run {manifest.run}")
            found.folders[folder] = manifest.checkpoint
            found.newest = max(found.newest, (folder / places.MANIFEST).stat().st_mtime)
        except StateError as error:
            found.faults.append(error.reason)
        except OSError as error:
            found.faults.append(f"{folder.name}: {(error.strerror or str(error)).lower()}")
    return found


def _steps(held: Checkpoint) -> dict[str, int]:
    """The last step of each pipeline that is in it."""
    return {last.pipeline: last.step for last in held.cut}


def _round_of(folder: Path) -> int:
    return int(folder.name.split("-")[1])


def _prune(written: Path, peer: str, number: int, most: int) -> set[Path]:
    """Remove all but the newest of the own ones of this stage, and those beyond the round that was written: they are of
    a course that the run has left. Which they were."""
    own = sorted(written.parent.glob(f"round-*-{short(peer)}"), key=_round_of, reverse=True)
    beyond = [folder for folder in own if _round_of(folder) > number]
    gone = {*beyond, *[folder for folder in own if folder not in beyond][most:]}
    for folder in gone:
        try:
            files.remove(folder)
        except OSError as error:
            log.warning("cannot remove the old checkpoint %s: %s", folder, error.strerror)
    for unfinished in written.parent.glob(f".round-*-{short(peer)}*{files.UNFINISHED}"):
        shutil.rmtree(unfinished, ignore_errors=True)
    return gone
