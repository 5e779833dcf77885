"""A transport that notes when the first frame of an exchange leaves, and may tell of each; all else it passes on."""

from __future__ import annotations

import time
from collections.abc import Callable

from distqat.averaging.messages import EXCHANGE
from distqat.ids import Endpoint
from distqat.rpc.transport import Method, Stream, Transport
from distqat.rpc.wrapped import WrappedStream, WrappedTransport


class TimedTransport(WrappedTransport):
    """Around another one."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.first: float | None = None  # When the first frame left; None until one does. Set it back for the next.
        self.on_frame: Callable[[], None] | None = None  # Called before a frame of an exchange leaves.

    def wrap_stream(self, stream: Stream, to: Endpoint, method: Method) -> Stream:
        """Only exchanges are noted."""
        return _Noting(stream, self) if method == EXCHANGE else stream


class _Noting(WrappedStream):
    """A stream of an exchange."""

    def __init__(self, inner: Stream, transport: TimedTransport) -> None:
        super().__init__(inner)
        self._transport = transport

    async def send(self, data: bytes, more: bool = False) -> None:
        """Noted before it leaves."""
        if self._transport.first is None:
            self._transport.first = time.monotonic()
        if self._transport.on_frame is not None:
            self._transport.on_frame()
        await super().send(data, more)
