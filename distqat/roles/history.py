"""Whether the run has ever committed a round: who knows says so to all, and keeps it on disk.

Only a run that never has may begin from fresh numbers. Experts that hold a state show it in their records; but when all
of them are gone and their records have died, the fact must not be. So every daemon of the run, whatever its roles, says
it in its own record once it has heard of it, and finds it again after a restart.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from distqat.discovery.view import Snapshot
from distqat.ids import RunId

log = logging.getLogger(__name__)


class History:
    """What this daemon knows of the past of runs; it only grows. Without a folder it is forgotten with the daemon."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._committed: set[RunId] = set()  # Runs of which it is known.

    def __repr__(self) -> str:
        return f"<History of {len(self._committed)} runs>"

    def has_committed(self, run: RunId, seen: Snapshot | None = None) -> bool:
        """Whether the run has committed a round, as far as this daemon was ever told; it looks at what it sees now."""
        if run in self._committed:
            return True
        path = self._path(run)
        is_written = path is not None and path.exists()
        if not is_written and (seen is None or not _shows(seen, run)):
            return False
        self._committed.add(run)
        if path is not None and not is_written:
            self._write(path, run)
        return True

    def remember(self, run: RunId) -> None:
        """The run has committed a round, whoever says so."""
        path = self._path(run)
        if path is not None and run not in self._committed and not path.exists():
            self._write(path, run)
        self._committed.add(run)

    def _path(self, run: RunId) -> Path | None:
        return self._folder / f"committed-{run.digest}.json" if self._folder is not None else None

    def _write(self, path: Path, run: RunId) -> None:
        """That the file is there says it all; what is in it is for people."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as file:
                file.write(json.dumps({"run": run.name, "digest": run.digest, "committed": True}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            log.warning("cannot write %s: %s", path, error.strerror)


def _shows(seen: Snapshot, run: RunId) -> bool:
    """Whether any record says so."""
    if any(entry.record.committed and entry.record.run == run for entry in seen.peers.values()):
        return True
    return seen.run == run and any(entry.record.round > 0 for entry in seen.experts.values())
