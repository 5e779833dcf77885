from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distqat.errors import StateError
from distqat.model import state
from distqat.model.state import Snapshot

SNAPSHOT = Snapshot(
    12,
    {
        "anchor/blocks.0.linear.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
        "momentum/blocks.0.linear.weight": torch.full((2, 3), -0.5),
        "empty": torch.zeros(0),
    },
)


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "stage.safetensors"
    state.save(SNAPSHOT, path)
    loaded = state.load(path)
    assert loaded.round == 12
    assert loaded.tensors.keys() == SNAPSHOT.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], SNAPSHOT.tensors[name]) for name in loaded.tensors)
    assert loaded.digest == SNAPSHOT.digest
    assert [file.name for file in path.parent.iterdir()] == ["stage.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage.safetensors"
    state.save(SNAPSHOT, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateError, match="No space left"):
        state.save(Snapshot(13, {}), path)
    assert state.load(path).round == 12
    assert len(list(tmp_path.iterdir())) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(where=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(tmp_path: Path, where: int, bit: int) -> None:
    path = tmp_path / "stage.safetensors"
    state.save(SNAPSHOT, path)
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(StateError):
        state.load(path)


def test_a_truncated_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stage.safetensors"
    with pytest.raises(StateError, match="cannot read"):
        state.load(path)
    state.save(SNAPSHOT, path)
    data = path.read_bytes()
    for length in (0, 4, 8, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(StateError, match="cannot read"):
            state.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(StateError):
        state.load(path)
    import safetensors.torch

    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(StateError, match="does not say its round"):
        state.load(path)


def test_a_digest_sees_every_bit() -> None:
    anchor, momentum = torch.zeros(4), torch.ones(4)
    base = state.digest(anchor, momentum)
    assert base == state.digest(anchor.clone(), momentum)
    assert len(base) == 32
    others = [
        state.digest(momentum, anchor),
        state.digest(-anchor, momentum),  # Negative zero.
        state.digest(anchor),
        state.digest(torch.cat([anchor, momentum])),
        state.digest(torch.zeros(3), torch.cat([torch.zeros(1), momentum])),
    ]
    assert len({base, *others}) == len(others) + 1
    strided = torch.stack([anchor, momentum], dim=1)
    assert state.digest(strided[:, 0], strided[:, 1]) == base


def test_a_digest_may_come_block_by_block_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "BLOCK_BYTES", 16)
    vectors = [torch.arange(9.0), torch.arange(5.0), torch.arange(0.0)]
    digest = state.Digest(*(vector.nbytes for vector in vectors))
    for index, number in ((0, 2), (1, 0), (0, 0), (1, 1), (0, 1)):
        digest.put(index, number, vectors[index][4 * number : 4 * number + 4].numpy().view("uint8").data)
    assert digest.hex() == state.digest(*vectors)
    assert digest.hex() != state.digest(vectors[1], vectors[0], vectors[2])


def test_a_snapshots_digest_sees_names_and_shapes() -> None:
    tensor = torch.zeros(2, 3)
    digests = {
        Snapshot(1, {"a": tensor}).digest,
        Snapshot(2, {"a": tensor}).digest,
        Snapshot(1, {"b": tensor}).digest,
        Snapshot(1, {"a": tensor.view(3, 2)}).digest,
        Snapshot(1, {"a": tensor.to(torch.int32)}).digest,
    }
    assert len(digests) == 5
    both = {"a": tensor, "b": tensor + 1}
    assert Snapshot(1, both).digest == Snapshot(1, dict(reversed(both.items()))).digest
