"""What a stage has committed, as named tensors: its digest, and its file.

A file is safetensors, which holds numbers and nothing that could run. Its metadata hold the digest of everything in it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from distqat.errors import StateError

_ROUND = "distqat.round"
_DIGEST = "distqat.digest"

BLOCK_BYTES = 1 << 20
"""Of a vector, hashed together for a digest. Siblings whose blocks differ would never agree."""

_HASH_BYTES = 16


@dataclass(frozen=True)
class Snapshot:
    """A stage's committed state after `round` rounds, such as `anchor/blocks.0.linear.weight`."""

    round: int
    tensors: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """Of the round, and of every name, type, shape and element; the order does not matter."""
        state = xxhash.xxh3_128(f"round {self.round}\n".encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            state.update(f"{len(name)} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            state.update(_bytes(tensor))
        return state.hexdigest()


class Digest:
    """xxh3-128 of a few vectors (parameters, momentum), bit for bit: of the hashes of their blocks, which may come in
    any order."""

    def __init__(self, *sizes: int) -> None:
        """Of vectors of so many bytes."""
        self._hashes = [bytearray(_HASH_BYTES * -(-size // BLOCK_BYTES)) for size in sizes]

    def put(self, vector: int, number: int, block: memoryview) -> None:
        """The block of that number of that vector; every block but its last one has BLOCK_BYTES."""
        begin = _HASH_BYTES * number
        self._hashes[vector][begin : begin + _HASH_BYTES] = xxhash.xxh3_128_digest(block)

    def put_whole(self, vector: int, data: memoryview) -> None:
        """All blocks of that vector."""
        for number, begin in enumerate(range(0, len(data), BLOCK_BYTES)):
            self.put(vector, number, data[begin : begin + BLOCK_BYTES])

    def hex(self) -> str:
        """Of all vectors, in their order, when all blocks are there."""
        return xxhash.xxh3_128_hexdigest(b"".join(xxhash.xxh3_128_digest(hashes) for hashes in self._hashes))


def digest(*vectors: Tensor) -> str:
    """The digest, in hex, of these vectors."""
    found = Digest(*(vector.nbytes for vector in vectors))
    for index, vector in enumerate(vectors):
        found.put_whole(index, _bytes(vector))
    return found.hex()


def save(snapshot: Snapshot, path: Path) -> None:
    """Write the file so that a crash leaves either the old one or the new one. Raises StateError."""
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in snapshot.tensors.items()}
    metadata = {_ROUND: str(snapshot.round), _DIGEST: snapshot.digest}
    try:
        _write(path, safetensors.torch.save(tensors, metadata))
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}") from None


def load(path: Path) -> Snapshot:
    """Read what `save` wrote. Raises StateError when it is missing, cut short or changed."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise StateError(f"cannot read {path}: {error}") from None
    number = metadata.get(_ROUND, "")
    if not number.isdecimal() or _DIGEST not in metadata:
        raise StateError(f"{path} is not a snapshot: it does not say its round and digest")
    snapshot = Snapshot(int(number), tensors)
    if snapshot.digest != metadata[_DIGEST]:
        raise StateError(f"{path} was changed after it was written: its digest does not match")
    return snapshot


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    # The new name itself must be on the disk too.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().to("cpu").contiguous()
    elements: Any = plain.reshape(-1).view(torch.uint8).numpy()
    return memoryview(elements)
