from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import xxhash

from distqat.averaging.outer import OuterState
from distqat.averaging.spans import Shape
from distqat.averaging.state import snapshot
from distqat.averaging.state.snapshot import ChunkRef, Manifest, PartManifest
from distqat.errors import MessageError
from tests.averaging.state.stock import SHAPES, make_state, num_chunks

SIZE = 256


def described(state: OuterState, size: int = SIZE) -> Manifest:
    found = [snapshot.hashes(snapshot.payload(part), size, 0, 1 << 20) for part in state.parts]
    return snapshot.manifest(state, found, size)


def test_the_chunks_of_a_manifest_are_the_bytes_of_the_state() -> None:
    state = make_state()
    manifest = described(state)
    manifest.check(SHAPES)
    assert manifest.num_chunks == len(list(manifest.chunks())) == num_chunks(SIZE)
    data = [bytearray(part.nbytes) for part in manifest.parts]
    for chunk in manifest.chunks():
        begin, end = manifest.bounds(chunk)
        views = snapshot.payload(state.parts[chunk.part]).cut(begin, end)
        assert manifest.hash(chunk) == xxhash.xxh3_128(b"".join(views)).digest()
        data[chunk.part][begin:end] = b"".join(views)
    parts = [snapshot.part_of(shape, memoryview(part)) for shape, part in zip(SHAPES, data, strict=True)]
    assert OuterState.of(parts, manifest.round, manifest.members).digest == state.digest


def test_hashes_worked_out_in_pieces_are_those_of_the_whole() -> None:
    data = snapshot.payload(make_state().parts[0])
    whole = snapshot.hashes(data, 100, 0, 10_000)
    assert len(whole) == 16 * snapshot.num_chunks(len(data), 100)
    assert b"".join(snapshot.hashes(data, 100, first, 7) for first in range(0, 10_000, 7)) == whole


def test_a_round_that_touches_one_fragment_leaves_the_hashes_of_the_others() -> None:
    state = make_state()
    parts = (state.parts[0], make_state(1).parts[1], state.parts[2])
    before, after = described(state), described(OuterState.of(parts, 4, state.members))
    assert before.digest != after.digest
    assert [one == other for one, other in zip(before.parts, after.parts, strict=True)] == [True, False, True]


def test_parts_without_elements_have_no_chunks() -> None:
    shapes = (Shape(0, 0), Shape(0, 3))
    state = make_state(shapes=shapes)
    manifest = described(state)
    manifest.check(shapes)
    assert list(manifest.chunks()) == [ChunkRef(1, 0)]
    assert manifest.bounds(ChunkRef(1, 0)) == (0, 12)
    assert snapshot.part_of(shapes[0], memoryview(bytearray())).digest == state.parts[0].digest


def test_has_knows_which_chunks_there_are() -> None:
    manifest = described(make_state())
    assert all(manifest.has(chunk) for chunk in manifest.chunks())
    last = max(chunk.index for chunk in manifest.chunks() if chunk.part == 2)
    for wrong in (ChunkRef(3, 0), ChunkRef(-1, 0), ChunkRef(2, last + 1), ChunkRef(0, -1)):
        assert not manifest.has(wrong)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: replace(m, chunk_bytes=0), "chunks of 0 bytes"),
        (lambda m: replace(m, chunk_bytes=1 << 40), "chunks of 1099511627776 bytes"),
        (lambda m: replace(m, parts=m.parts[:2]), "2 fragments where 3"),
        (lambda m: replace(m, parts=m.parts[::-1]), "fragment 0 is not that of this stage"),
        (lambda m: replace(m, parts=(_longer(m.parts[0]), *m.parts[1:])), "fragment 0 is not that of this stage"),
        (lambda m: replace(m, parts=(replace(m.parts[0], hashes=b""), *m.parts[1:])), "0 bytes of hashes"),
    ],
)
def test_a_manifest_that_is_not_of_this_stage_is_refused(change, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MessageError, match=reason):
        change(described(make_state())).check(SHAPES)


def _longer(part: PartManifest) -> PartManifest:
    first = replace(part.tensors[0], shape=(1 << 40,), bytes=4 << 40)
    return replace(part, tensors=(first, *part.tensors[1:]))


def test_the_bytes_are_not_copied() -> None:
    part = make_state().parts[0]
    view = snapshot.payload(part).parts[0]
    shared = torch.frombuffer(view, dtype=torch.float32)
    assert shared.data_ptr() == part.anchor.data_ptr()
