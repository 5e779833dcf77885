"""Connections of the real transport: one for each endpoint and lane, so that bulk never delays control."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from distqat.ids import Endpoint
from distqat.rpc.transport import Lane

MAX_CHANNELS = 512
"""Connections that are kept open without being used; the longest unused goes first."""

KEEPALIVE = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]
"""Of both sides: a silent connection that carries a call is probed, and broken after 15 s without an answer."""

_CHANNEL_OPTIONS = [
    *KEEPALIVE,
    # Connections are shared by equal options across a process; a pool of its own keeps the lanes apart.
    ("grpc.use_local_subchannel_pool", 1),
    # Peers are dialled directly, whatever proxy the environment names for the web.
    ("grpc.enable_http_proxy", 0),
    # Whether something is tried again is decided by the flows.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In truth how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_send_message_length", -1),
]


@dataclass
class _Entry:
    channel: grpc.aio.Channel
    num_users: int = 0


class Channels:
    """The open connections of one transport."""

    def __init__(self, max_message: int, max_channels: int = MAX_CHANNELS) -> None:
        self._options = [*_CHANNEL_OPTIONS, ("grpc.max_receive_message_length", max_message)]
        self._max_channels = max_channels
        self._entries: dict[tuple[Endpoint, Lane], _Entry] = {}  # Longest unused first.

    def __len__(self) -> int:
        return len(self._entries)

    @asynccontextmanager
    async def use(self, to: Endpoint, lane: Lane) -> AsyncIterator[grpc.aio.Channel]:
        """The connection to that endpoint on that lane; stays open at least as long as it is used."""
        entry = self._entries.pop((to, lane), None)
        if entry is None:
            entry = _Entry(grpc.aio.insecure_channel(str(to), options=self._options))
        self._entries[to, lane] = entry
        entry.num_users += 1
        try:
            if len(self._entries) > self._max_channels:
                await self._drop_unused()
            yield entry.channel
        finally:
            entry.num_users -= 1

    async def close(self) -> None:
        """Close all; calls that still use them fail."""
        while self._entries:
            _, entry = self._entries.popitem()
            await entry.channel.close()

    async def _drop_unused(self) -> None:
        key = next((key for key, entry in self._entries.items() if not entry.num_users), None)
        if key is not None:
            await self._entries.pop(key).channel.close()
