"""Own records on their way out: the latest of each counts, and none goes out too often."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial

from distqat.aio import Backoff, supervise
from distqat.discovery.messages import encode_record
from distqat.discovery.node import DhtNode
from distqat.discovery.records import Record, substance

QUICK = 0.2
"""Seconds between two publications when something of substance has changed."""

QUIET = 1.0
"""Seconds when only progress or the reason has."""


@dataclass
class _Slot:
    """What is to be said under one key."""

    kind: type[Record]
    wanted: Record | None  # None: nothing, withdraw it.
    said: Record | None = None
    at: float = float("-inf")  # When it was said last.
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def due(self) -> float | None:
        """When to go out next; None while there is nothing new."""
        if self.wanted == self.said:
            return None
        if self.wanted is None or self.said is None or substance(self.wanted) != substance(self.said):
            return self.at + QUICK
        return self.at + QUIET


class Announcer:
    """One task for each key under which this peer says something."""

    def __init__(self, dht: DhtNode, group: asyncio.TaskGroup, ttl: float) -> None:
        self._dht = dht
        self._group = group
        self._ttl = ttl
        self._slots: dict[str, _Slot] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Announcer {', '.join(key for key, slot in self._slots.items() if slot.wanted) or 'nothing'}>"

    def say(self, key: str, record: Record) -> None:
        """Say this under the key, in place of what was said there."""
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = _Slot(type(record), record)
            work = partial(self._keep_saying, key, slot)
            self._tasks.append(self._group.create_task(supervise(f"announce {key}", work, Backoff()), name=key))
        slot.wanted = record
        slot.changed.set()

    def hush(self, kind: type[Record]) -> None:
        """Say nothing of that kind any more."""
        for slot in self._slots.values():
            if slot.kind is kind:
                slot.wanted = None
                slot.changed.set()

    def close(self) -> None:
        """Stop; what was said stays until the node of the DHT withdraws it."""
        for task in self._tasks:
            task.cancel()

    async def _keep_saying(self, key: str, slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        while True:
            slot.changed.clear()
            due = slot.due()
            if due is not None and due <= loop.time():
                await self._say(key, slot)
                slot.at = loop.time()
                continue
            try:
                async with asyncio.timeout_at(due):
                    await slot.changed.wait()
            except TimeoutError:
                continue

    async def _say(self, key: str, slot: _Slot) -> None:
        wanted = slot.wanted
        slot.said = wanted
        if wanted is None:
            await self._dht.withdraw(key)
        else:
            await self._dht.publish(key, encode_record(wanted), self._ttl)
