"""Every codec on one core, beside hivemind's codecs: from a tensor to bytes, and from bytes to a new tensor.

Counted are bytes of fp32 and seconds of the processor, which a busy machine changes less than those of the clock.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import torch

from bench.case import Case, Goal, Line, interleave
from bench.hivemind import Peer, enter_if_possible, open_peer
from distqat.wire import codecs

SHAPE = (4, 1024, 1024)
"""fp32: 16 MiB, the size of an activation."""

RUNS = 31
QUICK_RUNS = 9
GIGABYTES = 4 * torch.Size(SHAPE).numel() / 1e9


@dataclass(frozen=True)
class Seconds:
    """Of the processor, for one tensor."""

    encode: float
    decode: float


@dataclass(frozen=True)
class Pair:
    """A codec of ours and the one of hivemind that it is held against, if there is one; what is to be reached."""

    ours: str
    theirs: str | None = None
    encode: Goal | None = None
    decode: Goal | None = None
    both: Goal | None = None


PAIRS = (
    Pair("none"),
    Pair("bf16", "FLOAT16"),
    Pair("fp16", "FLOAT16"),
    Pair("int8", "UNIFORM_8BIT", Goal("value", 2.5), Goal("value", 5.0), Goal("ratio", 3.0)),
    Pair("int8", "BLOCKWISE_8BIT", both=Goal("ratio", 3.0)),
    Pair("int4", "BLOCKWISE_8BIT"),
)


async def bench(quick: bool) -> AsyncIterator[Line]:
    """All codecs take turns, ours and theirs."""
    torch.set_num_threads(1)
    ours = sorted({pair.ours for pair in PAIRS})
    theirs = sorted({pair.theirs for pair in PAIRS if pair.theirs is not None})
    tensor = torch.randn(SHAPE)
    turns: dict[str, Callable[[], Awaitable[Seconds]]] = {name: partial(_measure, name, tensor) for name in ours}
    async with AsyncExitStack() as stack:
        peer = await enter_if_possible(stack, open_peer("codecs"))
        if peer is not None:
            await peer.ask("prepare", *SHAPE)
            turns |= {name: partial(_ask, peer, name) for name in theirs}
        measured = await interleave(QUICK_RUNS if quick else RUNS, *turns.values())
    found = dict(zip(turns, measured, strict=True))
    for pair in PAIRS:
        for line in _lines(pair, found[pair.ours], found.get(pair.theirs or "", [])):
            yield line


async def _measure(name: str, tensor: torch.Tensor) -> Seconds:
    codec = codecs.find(name)
    began = time.thread_time()
    data = codec.encode(tensor)
    between = time.thread_time()
    # As bytes come from the network: in a message, which cannot be written to.
    decoded = codec.decode(data.toreadonly(), tensor.dtype, tuple(tensor.shape))
    ended = time.thread_time()
    assert decoded.shape == tensor.shape
    return Seconds(between - began, ended - between)


async def _ask(peer: Peer, name: str) -> Seconds:
    return Seconds(*await peer.ask("measure", name))


def _lines(pair: Pair, ours: Sequence[Seconds], theirs: Sequence[Seconds]) -> list[Line]:
    peer = f"hivemind {pair.theirs}" if theirs else None

    def line(what: str, goal: Goal | None, of: Callable[[Seconds], float]) -> Line:
        if goal is not None and goal.of == "ratio" and not theirs:
            goal = None
        case = Case("wire", f"{pair.ours} {what}", "GB/s", "higher", peer, goal)
        return case.line([GIGABYTES / of(run) for run in ours], [GIGABYTES / of(run) for run in theirs])

    return [
        line("encode", pair.encode, lambda run: run.encode),
        line("decode", pair.decode, lambda run: run.decode),
        line("both ways", pair.both, lambda run: run.encode + run.decode),
    ]
