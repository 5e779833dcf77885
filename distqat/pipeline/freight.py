"""Tensors on their way over one hop: encoded in the codec that was agreed, off the event loop, and measured.

Whoever writes to a hop loads here and whoever reads from it unloads, each in a task of its own: so the last microbatch
is encoded and the next one decoded while the device computes the present one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, Protocol

import torch

from distqat.pipeline.hop import pack, unpack
from distqat.pipeline.hop_codecs import GRADIENT, HIDDEN, INPUTS, HopCodecs, check_codecs
from distqat.pipeline.pace import Pace
from distqat.pipeline.words import Gradient, Message, Microbatch
from distqat.timeline import OpenSpan, Timeline
from distqat.times import DOWN, UP, LinkState
from distqat.wire.compression import Compression
from distqat.wire.payload import NO_PAYLOAD, Payload
from distqat.wire.tensors import DTYPES, Sent, TensorHeader

CPU = torch.device("cpu")

Named = Mapping[str, Sent]

Bulk = Microbatch | Gradient


class Side(Protocol):
    """One end of a hop, as far as tensors go."""

    @property
    def compression(self) -> Compression:
        """Of what this end sends."""
        ...

    @property
    def began(self) -> float:
        """When the first frame of the message that came last was there."""
        ...

    async def send(self, message: Message, payload: Payload = NO_PAYLOAD) -> None:
        """Send a message with its payload."""
        ...


class Freight:
    """What travels between this place and the one "above" or "below" it."""

    def __init__(
        self,
        place: Literal["above", "below"],
        side: Side,
        codecs: HopCodecs,
        timeline: Timeline,
        pace: Pace,
        device: torch.device = CPU,
    ) -> None:
        is_above = place == "above"
        self._place = place
        self._side = side
        self._timeline = timeline
        self._pace = pace
        self._device = device  # Where what is unloaded goes.
        self._out, self._in = (UP, DOWN) if is_above else (DOWN, UP)
        self._sent_as, self._taken_as = (
            (codecs.gradients, codecs.activations) if is_above else (codecs.activations, codecs.gradients)
        )
        self._codecs = dict.fromkeys((INPUTS, HIDDEN, GRADIENT), self._sent_as)
        self._is_compressed = False  # What was sent last.

    def __repr__(self) -> str:
        return f"<Freight {self._place}: sends {self._sent_as}, takes {self._taken_as}>"

    async def ship(self, message: Message, named: Named) -> None:
        """Encode and send. Raises TensorError for what does not travel, RpcError or HopError when the hop breaks."""
        if not named or not isinstance(message, Microbatch | Gradient):
            await self._side.send(message)
            return
        await self.send(*await self.load(message, named))

    async def load(self, message: Bulk, named: Named) -> tuple[Bulk, Payload]:
        """Encode. Raises TensorError."""
        with self._measured("encode", message, self._out) as span:
            headers, payload = await pack(named, self._codecs, self._side.compression)
            span.bytes, span.raw = len(payload), _raw(headers)
        # Not what was decided: tensors may be too small for it, or not become smaller.
        self._is_compressed = any(header.raw for header in headers)
        return replace(message, tensors=headers), payload

    async def send(self, message: Bulk, payload: Payload) -> None:
        """Send what was encoded."""
        with self._measured("send", message, self._out) as span:
            await self._side.send(message, payload)
            span.bytes, span.raw = len(payload), _raw(message.tensors)

    async def unload(self, message: Bulk, payload: memoryview) -> dict[str, torch.Tensor]:
        """Decode what has come, onto the device. Raises MessageError, also for another codec than was agreed."""
        now, took = self._timeline.clock(), asyncio.get_running_loop().time() - self._side.began
        self._timeline.add("receive", now - took, now, _step(message), message.index, self._in, len(payload))
        check_codecs(message.tensors, self._taken_as)
        with self._measured("decode", message, self._in) as span:
            named = await unpack(message.tensors, payload, self._device)
            span.bytes, span.raw = len(payload), _raw(message.tensors)
        return named

    @property
    def link(self) -> dict[str, LinkState]:
        """What is known of the link, by the way that this end sends."""
        return {self._out: LinkState(self._side.compression.link_rate, self._is_compressed)}

    @contextmanager
    def _measured(self, kind: str, message: Bulk, way: str) -> Iterator[OpenSpan]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with self._timeline.span(kind, _step(message), message.index, way) as span:
            yield span
        self._pace.handled(self._place, kind, loop.time() - began)


def _step(message: Bulk) -> int:
    """For the timeline: an evaluation belongs to no step."""
    return 0 if isinstance(message, Microbatch) and not message.train else message.step


def _raw(headers: Iterable[TensorHeader]) -> int:
    """Bytes of the tensors as the stages know them."""
    sizes = ((math.prod(header.shape), DTYPES.get(header.dtype)) for header in headers)
    return sum(elements * dtype.itemsize for elements, dtype in sizes if dtype is not None)
