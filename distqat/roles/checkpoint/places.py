"""Where checkpoints lie: known without reading one, so a daemon may look for them before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from distqat.ids import RunId, short
from distqat.sections import DaemonSection

MANIFEST = "manifest.json"


def root_of(daemon: DaemonSection, state_dir: Path) -> Path:
    """The folder of all checkpoints of a daemon."""
    return Path(daemon.checkpoint_dir).expanduser() if daemon.checkpoint_dir else state_dir / "checkpoints"


def stage_folder(root: Path, run: RunId, stage: int) -> Path:
    """Where the checkpoints of a stage lie."""
    return root / run.digest / f"stage-{stage}"


def books_file(root: Path, run: RunId, peer: str) -> Path:
    """Where a daemon keeps the books of the run that go with its checkpoints."""
    return root / run.digest / f"books-{short(peer)}.json"


def folders(root: Path, run: RunId) -> list[Path]:
    """Those of a run, in order of their names; whether one is whole is not said. Without a folder there are none."""
    return sorted(root.glob(f"{run.digest}/stage-*/round-*"))


def has_any(root: Path, run: RunId) -> bool:
    """Whether there is one with a manifest: of a run that has committed rounds, even if it cannot be read."""
    return any((folder / MANIFEST).exists() for folder in folders(root, run))
