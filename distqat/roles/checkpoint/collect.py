"""The checkpoints of all stages of a run that lie in some folders: those of one moment, read without a swarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distqat.config import RunConfig
from distqat.errors import ConfigError, ModelError, StateError
from distqat.ids import RunId
from distqat.model.zoo import own
from distqat.roles.checkpoint import files
from distqat.roles.checkpoint.files import CONFIG, Manifest
from distqat.roles.checkpoint.places import MANIFEST


@dataclass(frozen=True)
class Found:
    """The checkpoints that lie below some folders."""

    where: str
    """Those folders, for people."""
    manifests: Mapping[Path, Manifest]
    """Of those that are whole, by their own folders."""
    faults: tuple[str, ...]
    """What is wrong with the others."""

    @property
    def runs(self) -> set[RunId]:
        """Of which there are any."""
        return {manifest.run for manifest in self.manifests.values()}


@dataclass(frozen=True)
class Moment:
    """One checkpoint of each stage."""

    config: RunConfig
    folders: Mapping[int, Path]
    manifests: Mapping[int, Manifest]

    @property
    def run(self) -> RunId:
        """As it was named when it trained; the config may have got more settings since."""
        return self.manifests[0].run

    @property
    def rounds(self) -> tuple[int, ...]:
        """Committed, by stage."""
        return tuple(manifest.checkpoint.round for _, manifest in sorted(self.manifests.items()))

    @property
    def is_exact(self) -> bool:
        """All stages have learned from the same steps."""
        return len({frozenset(manifest.checkpoint.cut) for manifest in self.manifests.values()}) == 1


def collect(roots: Sequence[Path], config: RunConfig | None) -> Moment:
    """The newest moment of a run of which all stages lie somewhere below these folders; the newest of each stage if no
    moment is whole.

    The run is the one of that config; None: the only one that lies there, by the config that its checkpoints hold, and
    then no model that is the user's code, and none whose config would be fetched. Raises StateError that says what is
    missing, cannot be read or is ambiguous, ModelError for such a model.
    """
    found = _look(roots)
    run, config = _of_config(found, config) if config is not None else _only_run(found)
    held = {folder: manifest for folder, manifest in found.manifests.items() if manifest.run == run}
    stages = range(config.model.stages)
    missing = sorted(set(stages) - {manifest.checkpoint.stage for manifest in held.values()})
    if missing:
        raise StateError(
            f"no whole checkpoint of stage {', '.join(map(str, missing))} of {len(stages)} of run {run} lies below "
            f"{found.where}{_because(found)}; name the folders of the other machines, or that of a mirror, as well"
        )
    cuts = {frozenset(manifest.checkpoint.cut) for manifest in held.values()}
    moments = [folders for cut in cuts if (folders := _newest(held, stages, cut)) is not None]
    best = max(moments, key=lambda one: _rounds(one, held)) if moments else _newest(held, stages, None)
    assert best is not None
    return Moment(config, best, {stage: held[folder] for stage, folder in best.items()})


def _look(roots: Sequence[Path]) -> Found:
    """Every byte of every checkpoint is looked at."""
    below = {path.parent.resolve() for root in roots for path in root.rglob(f"round-*/{MANIFEST}")}
    itself = {root.resolve() for root in roots if (root / MANIFEST).is_file()}
    manifests, faults = {}, []
    for folder in sorted(below | itself):
        try:
            manifests[folder] = files.verify(folder)
        except StateError as error:
            faults.append(error.reason)
    return Found(", ".join(str(root) for root in roots), manifests, tuple(faults))


def _only_run(found: Found) -> tuple[RunId, RunConfig]:
    if not found.runs:
        raise StateError(f"no whole checkpoint lies below {found.where}{_because(found)}")
    if len(found.runs) > 1:
        names = ", ".join(sorted(str(run) for run in found.runs))
        raise StateError(
            f"checkpoints of several runs lie below {found.where}: {names}; name the folder of one of them"
        )
    (run,) = found.runs
    config = _config_of(found, run)
    if config is None:
        raise StateError(
            f"the checkpoints of run {run} do not say its config; give it with --config, and --set if need be"
        )
    try:
        own.check(config.model.name, ())
    except ModelError:
        raise ModelError(f"model {config.model.name} is code; if it may be run here, name the run's --config") from None
    where = config.model.pretrained
    if where and not Path(where).is_dir():
        raise ModelError(
            f"model {config.model.name} has the sizes of the pretrained '{where}', which is no directory here; "
            "if its config may be fetched from the hub, name the run's --config"
        )
    return run, config


def _of_config(found: Found, config: RunConfig) -> tuple[RunId, RunConfig]:
    # Settings that this version has and the one that trained had not have their defaults.
    same = [run for run in found.runs if run == config.id or _config_of(found, run) == config]
    if not same:
        there = ", ".join(sorted(str(run) for run in found.runs)) or "none"
        raise StateError(
            f"no checkpoint of run {config.id} lies below {found.where}{_because(found)}; "
            f"of others there are: {there}; leave --config and --set out to take the config that the checkpoints hold"
        )
    return same[0], config


def _config_of(found: Found, run: RunId) -> RunConfig | None:
    """What the run's checkpoints say; None if they do not, or if this version cannot read it."""
    texts = {str(m.facts[CONFIG]) for m in found.manifests.values() if m.run == run and CONFIG in m.facts}
    try:
        return RunConfig.from_canonical(texts.pop()) if texts else None
    except ConfigError:
        return None


def _newest(held: Mapping[Path, Manifest], stages: range, cut: frozenset[object] | None) -> dict[int, Path] | None:
    """Of each stage the newest checkpoint, of that cut; None if a stage has none."""
    folders: dict[int, Path] = {}
    for folder, manifest in held.items():
        one = manifest.checkpoint
        if cut is not None and frozenset(one.cut) != cut:
            continue
        before = folders.get(one.stage)
        if before is None or held[before].checkpoint.round < one.round:
            folders[one.stage] = folder
    return folders if set(folders) == set(stages) else None


def _rounds(folders: Mapping[int, Path], held: Mapping[Path, Manifest]) -> list[int]:
    return [held[folder].checkpoint.round for _, folder in sorted(folders.items())]


def _because(found: Found) -> str:
    return f" ({'; '.join(found.faults)})" if found.faults else ""
