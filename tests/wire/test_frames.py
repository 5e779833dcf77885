from __future__ import annotations

import random
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.errors import MessageError
from distqat.pb.pipeline_pb2 import HopFrame, HopHeader, Microbatch
from distqat.wire import frames
from distqat.wire.frames import Assembler, Chunk
from distqat.wire.payload import Payload

HEADERS = st.builds(
    lambda step, index, samples: HopHeader(microbatch=Microbatch(step=step, index=index, samples=samples)),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 300),
)
PAYLOADS = st.one_of(st.binary(max_size=300), st.integers(0, 40_000).map(bytes))


@given(HEADERS, PAYLOADS)
def test_ours_is_what_protobuf_reads(header: HopHeader, payload: bytes) -> None:
    frame = HopFrame.FromString(frames.join(header.SerializeToString(), memoryview(payload)))
    assert frame.header == header
    assert frame.payload == payload


@given(HEADERS, PAYLOADS)
def test_protobufs_is_what_we_read_and_write(header: HopHeader, payload: bytes) -> None:
    theirs = HopFrame(header=header, payload=payload).SerializeToString()
    ours, rest = frames.split(theirs)
    assert HopHeader.FromString(bytes(ours)) == header
    assert bytes(rest) == payload
    assert frames.join(bytes(ours), rest) == theirs


def test_an_empty_header_is_one() -> None:
    assert [bytes(part) for part in frames.split(frames.join(b""))] == [b"", b""]
    assert frames.join(b"", b"ab") == HopFrame(header=HopHeader(), payload=b"ab").SerializeToString()


def test_nothing_is_copied_when_a_frame_is_read() -> None:
    frame = frames.join(b"header", bytes(100))
    header, payload = frames.split(frame)
    assert header.obj is payload.obj is frame


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "no header where it belongs"),
        (b"GET / HTTP/1.1\r\n", "no header where it belongs"),
        (b"\x12\x01a", "no header where it belongs"),
        (b"\x0a", "length of its header has no end"),
        (b"\x0a\x80", "length of its header has no end"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\x01", "length of its header has no end"),
        (b"\x0a\x05abc", "a header of 5 bytes in a frame of 5"),
        (b"\x0a\x00\x0a\x00", "no payload where it belongs"),
        (b"\x0a\x00\x12\x03ab", "a payload of 3 bytes"),
        (b"\x0a\x00\x12\x01ab", "1 bytes behind the payload"),
        (frames.join(bytes(frames.MAX_HEADER_BYTES + 1)), "a frame header of 65537 bytes; at most 65536"),
    ],
)
def test_garbage_is_named(frame: bytes, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        frames.split(frame)


@given(st.integers(0, 60), st.integers(1, 20))
def test_chunks_are_put_together_again(size: int, chunk_size: int) -> None:
    payload = random.Random(size).randbytes(size)
    assembler = Assembler(limit=60)
    for _ in range(2):  # A second message over the same stream.
        pieces = list(frames.chunks(Payload([memoryview(payload)]), chunk_size))
        whole = [assembler.add(chunk, memoryview(b"".join(views))) for chunk, views in pieces]
        assert whole[:-1] == [None] * (len(pieces) - 1)
        assert whole[-1] is not None
        assert bytes(whole[-1]) == payload


@given(st.lists(st.binary(max_size=9), max_size=5), st.integers(1, 12))
def test_parts_are_cut_as_if_they_were_one(parts: list[bytes], chunk_size: int) -> None:
    payload = Payload([memoryview(part) for part in parts])
    whole = b"".join(parts)
    assert (len(payload), bytes(payload)) == (len(whole), whole)
    cut = [(chunk, b"".join(views)) for chunk, views in frames.chunks(payload, chunk_size)]
    assert cut == [
        (Chunk(begin, len(whole)), whole[begin : begin + chunk_size])
        for begin in range(0, max(len(whole), 1), chunk_size)
    ]
    assert frames.join(b"head", *payload.parts) == frames.join(b"head", whole)


def test_a_payload_is_cut_without_a_copy() -> None:
    first, second = memoryview(bytes(6)), memoryview(bytes(6))
    (view,), (left, right), (rest,) = (views for _, views in frames.chunks(Payload([first, second]), 5))
    assert (view.obj, left.obj, right.obj, rest.obj) == (first.obj, first.obj, second.obj, second.obj)


def test_what_was_put_together_is_aligned_and_can_be_written_to() -> None:
    for size in (100, 4096, (1 << 20) + 1):
        assembler = Assembler(1 << 21)
        assembler.add(Chunk(0, size), memoryview(bytes(60)))
        assert assembler.expected == Chunk(60, size)
        whole = assembler.add(Chunk(60, size), memoryview(bytes(size - 60)))
        assert whole is not None
        assert assembler.expected is None
        assert np.frombuffer(whole, np.uint8).ctypes.data % frames.ALIGNMENT == 0
        whole[:] = b"x" * size


def test_a_message_of_one_chunk_is_not_copied() -> None:
    data = memoryview(bytes(10))
    assert Assembler(10).add(Chunk(0, 10), data) is data


@pytest.mark.parametrize(
    ("chunk", "size", "message"),
    [
        (Chunk(3, 10), 4, "a chunk of 4 bytes at 3 of 10, where 4 were expected"),
        (Chunk(0, 10), 4, "where 4 were expected"),
        (Chunk(8, 10), 2, "where 4 were expected"),
        (Chunk(4, 10), 7, "a chunk of 7 bytes at 4 of 10"),
        (Chunk(4, 12), 4, "a message of 12 bytes within one of 10"),
        (Chunk(4, 10), 0, "an empty chunk at 4 of 10"),
        (Chunk(4, 101), 4, "a message of 101 bytes; at most 100"),
    ],
)
def test_chunks_out_of_order_are_refused(chunk: Chunk, size: int, message: str) -> None:
    assembler = Assembler(100)
    assert assembler.add(Chunk(0, 10), memoryview(bytes(4))) is None
    with pytest.raises(MessageError, match=message):
        assembler.add(chunk, memoryview(bytes(size)))


def test_an_oversized_message_is_refused_before_anything_is_allocated() -> None:
    assembler = Assembler(1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(MessageError, match="at most 1048576"):
            assembler.add(Chunk(0, 1 << 40), memoryview(b"abc"))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12)), max_size=8))
def test_any_chunks_give_a_whole_message_or_an_error(chunks: list[tuple[int, int, int]]) -> None:
    assembler = Assembler(10)
    with suppress(MessageError):
        for offset, total, size in chunks:
            whole = assembler.add(Chunk(offset, total), memoryview(bytes(size)))
            assert whole is None or len(whole) == total <= 10
