"""A checkpoint of one stage as a folder: whole or not there, and refused if a bit of it was changed.

    <root>/<run digest>/stage-1/round-000120-<peer>/outer.safetensors      what is committed
                                                    local.safetensors      what the next step follows from, beyond that
                                                    manifest.json          last: what they are, their sizes and hashes

Everything is written into a folder of another name, flushed to the disk, and renamed. So whatever the moment at which
the machine stops, the folder is there with all that belongs to it, or is not; and who reads it believes nothing that
its manifest does not say, nor the manifest unless it has its own hash.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import xxhash
from torch import Tensor

from distqat.errors import StateError
from distqat.ids import PipelineId, RunId, StepRef, short
from distqat.model.agreement import LossScale, Verdict
from distqat.roles.checkpoint.places import MANIFEST, stage_folder
from distqat.roles.checkpoint.words import Checkpoint

FORMAT = 2
SUFFIX = ".safetensors"
UNFINISHED = ".new"
CONFIG = "config"
"""Which of a manifest's facts is the run's config, in its canonical form: with it alone the model can be built."""
BLOCK = 1 << 22
"""Bytes that are read at once while a file is hashed."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    bytes: int
    hash: str
    """xxh3-128, in hex."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    run: RunId
    peer: str
    checkpoint: Checkpoint
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers that go with the tensors; the saver's."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)


def folder_of(root: Path, manifest: Manifest) -> Path:
    """Where such a checkpoint lies."""
    held = manifest.checkpoint
    return stage_folder(root, manifest.run, held.stage) / f"round-{held.round:06d}-{short(manifest.peer)}"


def write(root: Path, manifest: Manifest, groups: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write a checkpoint whose file `<name>.safetensors` holds the tensors of each group; the folder that it is now.

    One of the same name is replaced. Raises StateError with the reason of the system; then nothing has changed.
    """
    target = folder_of(root, manifest)
    scratch = target.with_name(f".{target.name}{UNFINISHED}")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        os.makedirs(scratch)
        files = {name + SUFFIX: _write_tensors(scratch / (name + SUFFIX), held) for name, held in groups.items()}
        _write_bytes(scratch / MANIFEST, _to_json(replace(manifest, files=files)).encode())
        _flush_folder(scratch)
        _put(scratch, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise StateError(f"{(error.strerror or str(error)).lower()} ({target.parent})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _put(scratch: Path, target: Path) -> None:
    """In the place of what is there; that stays if it cannot be. Raises OSError."""
    old = target.with_name(f".{target.name}-old{UNFINISHED}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(scratch, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path) -> Manifest:
    """What the checkpoint says of itself, after a look at every byte of it. Raises StateError that names the file."""
    manifest = _read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size, found = path.stat().st_size, _hash_file(path)
        except OSError as error:
            raise StateError(f"{folder.name}/{name}: {(error.strerror or str(error)).lower()}") from None
        if size != entry.bytes:
            raise StateError(f"{folder.name}/{name} has {size} bytes, not {entry.bytes}")
        if found != entry.hash:
            raise StateError(f"{folder.name}/{name} was changed after it was written: its hash does not match")
    return manifest


def read(folder: Path) -> tuple[Manifest, Mapping[str, Mapping[str, Tensor]]]:
    """The checkpoint with its tensors. Raises StateError that names the file that is missing, cut short or changed."""
    manifest, groups = verify(folder), {}
    for name in manifest.files:
        try:
            groups[name.removesuffix(SUFFIX)] = safetensors.torch.load_file(folder / name)
        except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
            raise StateError(f"{folder.name}/{name}: {error}") from None
    return manifest, groups


def remove(folder: Path) -> None:
    """Remove a checkpoint, if there is one; half removed it is none, since the manifest goes first. Raises OSError."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    return _write_bytes(path, safetensors.torch.save({name: _alone(held) for name, held in tensors.items()}))


def _alone(tensor: Tensor) -> Tensor:
    """In memory of its own: views of one tensor are refused otherwise."""
    is_view = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if is_view else tensor.contiguous()


def _write_bytes(path: Path, data: bytes) -> FileEntry:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return FileEntry(len(data), xxhash.xxh3_128_hexdigest(data))


def _flush_folder(folder: Path) -> None:
    """The names in it must be on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hash_file(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def _to_json(manifest: Manifest) -> str:
    tree = {"format": FORMAT, **asdict(manifest)}
    return json.dumps({**tree, "check": _check(tree)}, indent=1)


def _check(tree: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(tree, sort_keys=True).encode())


def _read_manifest(folder: Path) -> Manifest:
    try:
        tree = json.loads((folder / MANIFEST).read_text())
        check = tree.pop("check")
        if check != _check(tree):
            raise StateError(f"{folder.name}/{MANIFEST} was changed after it was written: its hash does not match")
        if tree["format"] != FORMAT:
            raise StateError(f"{folder.name} is of format {tree['format']}, which this version does not read")
        return Manifest(
            run=RunId(**tree["run"]),
            peer=tree["peer"],
            checkpoint=_checkpoint(tree["checkpoint"]),
            facts=tree["facts"],
            files={name: FileEntry(**entry) for name, entry in tree["files"].items()},
        )
    except OSError as error:
        raise StateError(f"{folder.name}/{MANIFEST}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{folder.name}/{MANIFEST} is no manifest: {type(error).__name__} {error}") from None


def _checkpoint(tree: Mapping[str, Any]) -> Checkpoint:
    verdict = tree["verdict"]
    return Checkpoint(
        stage=tree["stage"],
        round=tree["round"],
        digest=tree["digest"],
        cut=tuple(_step(step) for step in tree["cut"]),
        local=_step(tree["local"]) if tree["local"] is not None else None,
        verdict=Verdict(verdict["factor"], LossScale(**verdict["scale"])) if verdict is not None else None,
    )


def _step(tree: Mapping[str, Any]) -> StepRef:
    return StepRef(PipelineId(tree["pipeline"]), tree["step"])
