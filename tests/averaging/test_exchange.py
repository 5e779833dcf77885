from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from hypothesis import given, strategies

from distqat.averaging import attempt as attempts
from distqat.averaging import messages
from distqat.averaging import owner as owners
from distqat.averaging.attempt import Attempt
from distqat.averaging.blame import AttemptError
from distqat.averaging.contribution import Average, Contribution
from distqat.averaging.exchange import Exchange
from distqat.averaging.group import Group, Member, Rates
from distqat.averaging.messages import SliceHeader
from distqat.averaging.outer import Source, Step
from distqat.averaging.owner import Owner
from distqat.averaging.spans import Span
from distqat.averaging.waits import LEAST_RATE
from distqat.ids import PeerId
from distqat.model.state import BLOCK_BYTES
from distqat.rpc.local import Network
from distqat.rpc.pacing import Pacer
from distqat.rpc.transport import Stream
from distqat.sections import SyncSection
from distqat.wire import codecs
from distqat.wire.codecs.blocks import BlockCodec
from distqat.wire.frames import Chunk
from tests.averaging import naive
from tests.averaging.members import DILOCO, Party, party
from tests.averaging.swarm import Inline
from tests.averaging.vectors import normal
from tests.support import run_virtual

T = TypeVar("T")

ELEMENTS, BUFFERS = 3000, 77
CODECS = ("none", "bf16", "int8", "int4", "int2")
PLAIN = SyncSection(warmup_steps=9, max_wait=4.0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of several chunks also for short vectors."""
    monkeypatch.setattr(attempts, "CHUNK_BYTES", 300)


@asynccontextmanager
async def siblings(
    number: int = 3, sync: SyncSection = DILOCO, network: Network | None = None, elements: int = ELEMENTS
) -> AsyncIterator[Party]:
    """With 1, 2, 3, ... samples."""
    start = normal(elements, 99)
    locals_ = [start + normal(elements, seed, 0.1) for seed in range(number)]
    async with party(locals_, start, BUFFERS, sync, network) as group:
        for index, member in enumerate(group.members):
            member.samples = index + 1
        yield group


def expected(group: Party, formed: Group) -> torch.Tensor:
    """What the group ends with, worked out on whole vectors."""
    how, codec = group.members[0].context.phase(0), formed.codec
    vectors = [naive.delta(member.state, member.local, how, codec == "none") for member in group.members]
    bounds = [0, *(member.end for member in formed.members)]
    return naive.average(codec, vectors, [member.samples for member in formed.members], bounds)


@pytest.mark.parametrize("sync", [DILOCO, PLAIN], ids=["diloco", "plain"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_all_hold_the_same_bits_and_they_are_those_of_the_oracle(number: int, codec: str, sync: SyncSection) -> None:
    async def scenario() -> None:
        async with siblings(number, sync) as group:
            formed = group.group(codec)
            average = await group.average(codec, commit=False)
            assert torch.equal(average.vector, expected(group, formed))

    run_virtual(scenario())


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_arrival_changes_no_bit(seed: int) -> None:
    async def scenario() -> bytes:
        async with siblings(4, network=Network(seed=seed, delay=0.01, jitter=0.1 * seed)) as group:
            return bytes((await group.average("int8", commit=False)).payload)

    assert run_virtual(scenario()) == run_virtual(_in_order())


@pytest.mark.parametrize("seed", range(4))
def test_who_takes_averaged_chunks_late_gets_them_made_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "KEPT_FRAMES", 1)

    async def scenario() -> bytes:
        async with siblings(4, network=Network(seed=seed, delay=0.01, jitter=0.2)) as group:
            return bytes((await group.average("int8", commit=False)).payload)

    assert run_virtual(scenario()) == run_virtual(_in_order())


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_the_outer_step_is_taken_while_the_average_comes_where_there_is_room(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `none` what travels is as long as the next state."""
    monkeypatch.setattr(attempts, "CHUNK_BYTES", 1 << 16)
    blocks: list[int] = []
    work_out = Step._work_out

    def noted(step: Step, source: Source, block: Span) -> None:
        blocks.append(block.begin)
        work_out(step, source, block)

    monkeypatch.setattr(Step, "_work_out", noted)

    async def scenario() -> None:
        async with siblings(2, elements=2 * BLOCK_BYTES // torch.float32.itemsize + 1000) as group:
            await group.exchange(group.group(codec))
            assert bool(blocks) is (codec == "int8")

    run_virtual(scenario())


async def _in_order() -> bytes:
    async with siblings(4) as group:
        return bytes((await group.average("int8", commit=False)).payload)


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_slices_of_any_size(codec: str) -> None:
    """The one of a slow link is empty: its member owns nothing, and has nothing to wait for."""

    async def scenario() -> None:
        async with siblings(4) as group:
            for member, rate in zip(group.members, (4e6, 1e6, 3e6, 4e6), strict=True):
                member.rates = Rates(rate, 2 * rate)
            formed = group.group(codec)
            assert formed.members[1].elements == 0
            assert len({member.elements for member in formed.members}) > 2
            average = await group.average(codec, commit=False)
            assert torch.equal(average.vector, expected(group, formed))

    run_virtual(scenario())


@pytest.mark.parametrize("codec", ["none", "int8", "int2"])
def test_who_has_nothing_to_contribute_only_receives(codec: str) -> None:
    async def scenario() -> None:
        async with siblings(4) as group:
            group.members[1].samples = group.members[2].samples = 0
            formed = group.group(codec)
            assert formed.members[1].elements > 0
            average = await group.average(codec, commit=False)
            assert torch.equal(average.vector, expected(group, formed))

    run_virtual(scenario())


def test_nobody_has_an_average_before_all_have_come_even_who_brings_and_adds_nothing() -> None:
    """Its word that it has committed nothing may be old; see `doubts`."""

    async def scenario() -> None:
        async with siblings(4) as group:
            for member, rate in zip(group.members, (9e6, 9e6, 9e6, 1e6), strict=True):
                member.rates = Rates(rate, rate)
            absent = group.members[3]
            absent.samples = 0
            formed = group.group()
            assert formed.members[3].elements == 0
            group.members.remove(absent)
            for result in await group.exchange(formed):
                assert isinstance(result, AttemptError)
                assert (result.lost, result.reason) == (absent.name, "no stream from d for 2 s")

    run_virtual(scenario())


def test_a_contribution_that_is_left_out_is_not_sent() -> None:
    """It is there, but the group counts no samples for it."""

    async def scenario() -> None:
        async with siblings(3) as group:
            formed = group.group("int8")
            muted = replace(formed.members[1], samples=0)
            formed = replace(formed, members=(formed.members[0], muted, formed.members[2]))
            results = await group.exchange(formed)
            for result in results:
                assert isinstance(result, Average)
                assert torch.equal(result.vector, expected(group, formed))
                assert result.residual is None

    run_virtual(scenario())


def test_bytes_are_those_of_two_shots() -> None:
    """Everyone sends and receives all slices but its own, twice over."""

    async def scenario() -> None:
        async with siblings(4, elements=256 * 400) as group:
            results = await group.exchange(group.group("int8"))
            size = codecs.find("int8").size(256 * 400, torch.float32)
            for result in results:
                assert isinstance(result, Average)
                assert 0.99 <= result.bytes / (4 * size * 3 / 4) <= 1.3

    run_virtual(scenario(), debug=False)


def test_a_further_attempt_encodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with siblings(3) as group:
            first = await group.average("int8", commit=False)
            encoded: list[int] = []
            plain = BlockCodec.encode_part

            def count(self: BlockCodec, values: object, data: memoryview, elements: int, begin: int) -> None:
                encoded.append(begin)
                plain(self, values, data, elements, begin)  # type: ignore[arg-type]

            monkeypatch.setattr(BlockCodec, "encode_part", count)
            # Without one of them the slices are others.
            del group.members[1]
            second = await group.average("int8", commit=False)
            assert not torch.equal(first.vector, second.vector)
            formed = group.group("int8")
            assert torch.equal(second.vector, expected(group, formed))
            # Nothing but the averages: each element once.
            assert len(encoded) == len(set(encoded))
            assert all(begin < ELEMENTS for begin in encoded)

    run_virtual(scenario())


@pytest.mark.parametrize("number", [2, 4, 8, 16])
def test_the_error_of_int8_does_not_grow_with_the_members(number: int) -> None:
    async def scenario() -> None:
        async with siblings(number, elements=256 * 100) as group:
            for member in group.members:
                member.samples = 1
            group.group("int8")
            average = await group.average("int8", commit=False)
            how = group.members[0].context.phase(0)
            vectors = [naive.delta(member.state, member.local, how, False).double() for member in group.members]
            mean = torch.stack(vectors).mean(0)
            assert float((average.vector.double() - mean).norm() / mean.norm()) <= 0.012

    run_virtual(scenario(), debug=False)


Frame = tuple[SliceHeader, bytes]

is_average: ContextVar[bool] = ContextVar("is_average", default=False)
"""Whether this task sends averages, not its part of another's slice."""


def tampered(header: SliceHeader, payload: bytes) -> dict[str, Frame]:
    """What a member might send instead of its second chunk."""
    chunk = header.chunk
    return {
        "another attempt": (replace(header, attempt="other"), payload),
        "another sender": (replace(header, peer=PeerId("mallory")), payload),
        "another codec": (replace(header, codec="none"), payload),
        "the first chunk again": (replace(header, chunk=Chunk(0, chunk.total)), payload),
        "another total": (replace(header, chunk=Chunk(chunk.offset, 1 << 60)), payload),
        "too short": (header, payload[:-1]),
        "too long": (header, payload + b"\0"),
        "nothing": (header, b""),
        "scales that are no numbers": (header, b"\xff" * len(payload)),
    }


@pytest.mark.parametrize("what", [*tampered(SliceHeader("", PeerId(""), "", Chunk(0, 0)), b""), "the end"])
@pytest.mark.parametrize("is_owner", [False, True], ids=["contribution", "average"])
def test_a_chunk_that_is_not_the_next_is_refused_by_name(
    what: str, is_owner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, write = Attempt.send, Owner._write

    async def note(self: Owner, member: Member, stream: Stream) -> None:
        is_average.set(True)
        await write(self, member, stream)

    async def tamper(self: Attempt, stream: Stream, frame: bytes) -> None:
        header, payload = messages.unframe(SliceHeader, frame)
        if self.mine.peer == "b" and header.chunk.offset and is_average.get() is is_owner:
            if what == "the end":
                await stream.finish()
                await asyncio.sleep(100)
            header, data = tampered(header, bytes(payload))[what]
            frame = messages.frame(header, data)
        await plain(self, stream, frame)

    async def scenario() -> None:
        async with siblings(3) as group:
            formed = group.group("int8")
            monkeypatch.setattr(Attempt, "send", tamper)
            monkeypatch.setattr(Owner, "_write", note)
            results = await group.exchange(formed)
            assert any(isinstance(result, AttemptError) and result.lost == "b" for result in results), results
            for member, result in zip(group.members, results, strict=True):
                if member.name != "b" and isinstance(result, AttemptError):
                    assert result.lost == "b", result

    if what == "the end" and is_owner:
        return  # A handler ends its stream by returning: see test_faults.
    run_virtual(scenario(), timeout=60.0)


def test_a_lie_about_the_norm_is_found_by_every_owner() -> None:
    async def scenario() -> None:
        async with siblings(3) as group:
            formed = group.group("int8")
            liar = replace(formed.members[0], norm=formed.members[0].norm / 10)
            formed = replace(formed, members=(liar, *formed.members[1:]))
            for member, result in zip(group.members, await group.exchange(formed), strict=True):
                assert isinstance(result, AttemptError)
                if member.name != "a":
                    assert result.lost == "a"
                    assert "the contribution of a is longer than it said" in result.reason

    run_virtual(scenario())


def test_a_chunk_is_whole_blocks_of_about_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "CHUNK_BYTES", 1 << 20)
    for name in codecs.names():
        codec = codecs.find(name)
        elements = attempts.chunk_elements(codec, 2, 5.0)
        assert elements % codec.block == 0
        assert codec.size(elements, torch.float32) <= 1 << 20
        assert codec.size(elements + codec.block, torch.float32) > (1 << 20) - 64
    monkeypatch.setattr(attempts, "CHUNK_BYTES", 1)
    assert attempts.chunk_elements(codecs.find("int8"), 2, 5.0) == 256


@given(strategies.sampled_from(CODECS), strategies.integers(2, 200), strategies.floats(0.25, 60.0))
def test_a_chunk_to_and_from_everyone_leaves_in_time_over_the_slowest_link(
    name: str, members: int, progress: float
) -> None:
    codec = codecs.find(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "CHUNK_BYTES", 1 << 20)
        size = codec.size(attempts.chunk_elements(codec, members, progress), torch.float32)
    assert size <= 1 << 20
    assert size >= attempts.LEAST_CHUNK_BYTES - codec.size(codec.block, torch.float32)
    seconds = 2 * (members - 1) * size / LEAST_RATE
    assert seconds <= 0.5 * progress or size <= attempts.LEAST_CHUNK_BYTES


@pytest.mark.parametrize("is_fixed", [False, True], ids=["as it is", "as long as in a pair"])
def test_sixteen_members_at_ten_megabits_blame_nobody(is_fixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates and chunks are a sixteenth of what they would be, so that slices of several chunks are short."""
    scale, number, pacers = 16, 16, collections.defaultdict[PeerId, Pacer](Pacer)
    plain, sized = Attempt.send, attempts.chunk_elements
    monkeypatch.setattr(attempts, "CHUNK_BYTES", (1 << 20) // scale)
    monkeypatch.setattr(attempts, "LEAST_CHUNK_BYTES", attempts.LEAST_CHUNK_BYTES // scale)
    monkeypatch.setattr(attempts, "LEAST_RATE", LEAST_RATE / scale)
    if is_fixed:
        monkeypatch.setattr(attempts, "chunk_elements", lambda codec, members, progress: sized(codec, 2, progress))

    async def paced(self: Attempt, stream: Stream, frame: bytes) -> None:
        pacer = pacers[self.mine.peer]
        pacer.rate = 10e6 / 8 / scale
        await asyncio.sleep(pacer.take(len(frame), asyncio.get_running_loop().time()))
        await plain(self, stream, frame)

    async def scenario() -> None:
        async with siblings(number, SyncSection(warmup_steps=0), elements=number * 16_000) as group:
            monkeypatch.setattr(Attempt, "send", paced)
            # As in a round, who has its average goes on giving until all have theirs.
            monkeypatch.setattr(Exchange, "end", lambda exchange: None)
            results = await group.exchange(group.group("none"))
            blamed = {result.lost for result in results if isinstance(result, AttemptError) and result.lost}
            assert bool(blamed) is is_fixed
            assert is_fixed or all(isinstance(result, Average) for result in results)

    run_virtual(scenario(), timeout=600.0, debug=False)


def test_values_that_the_codec_cannot_hold_are_the_own_fault() -> None:
    async def scenario() -> None:
        async with siblings(2) as group:
            formed = group.group("bf16")
            member = group.members[0]
            # As if they had changed since they were looked at.
            member.local[5] = float("nan")
            member.contribution = Contribution(member.state, member.local, member.context.phase(0), member.feedback)
            result = (await group.exchange(formed))[0]
            assert isinstance(result, AttemptError)
            assert result.lost == "a"
            assert "NaN" in result.reason

    run_virtual(scenario())


class Counted(Inline):
    """A device that counts what it is given."""

    def __init__(self) -> None:
        self.jobs = 0

    async def run(self, fn: Callable[[], T], /) -> T:
        self.jobs += 1
        return fn()


@pytest.mark.parametrize(("elements", "is_handed_over"), [(20_000, False), (200_000, True)])
def test_only_large_chunks_are_handed_to_the_device(
    elements: int, is_handed_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "CHUNK_BYTES", 1 << 20)

    async def scenario() -> None:
        async with siblings(2, elements=elements) as group:
            devices = [Counted() for _ in group.members]
            for member, device in zip(group.members, devices, strict=True):
                member.context = replace(member.context, device=device)
            # Encoded beforehand, so that nothing but the chunks is left.
            formed = group.group("int8")
            for member in group.members:
                assert member.contribution is not None
                member.contribution.encode("int8")
            await group.exchange(formed)
            assert [device.jobs for device in devices] == [int(is_handed_over)] * 2

    run_virtual(scenario(), debug=False)
