"""Samples that cannot be read: tried again, and then skipped for good, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from distqat.data.client import Batch, LedgerClient, LocalClaims, UnreadableError
from distqat.data.ledger import Ledger
from distqat.data.patience import MOST, MOST_EQUAL, Patience
from distqat.data.sources import Arrays
from distqat.errors import DataError
from tests.support import run_virtual


class FakeReading:
    """`fault` says why samples cannot be read; nothing: they can."""

    waiting = ""
    num_samples = num_held_out = 100

    def __init__(self, fault: Callable[[int, int], str]) -> None:
        self.fault = fault
        self.reads: list[tuple[int, int]] = []

    async def train(self, begin: int, end: int) -> Arrays:
        self.reads.append((begin, end))
        if why := self.fault(begin, end):
            raise DataError(why)
        return {"inputs": np.zeros((end - begin, 1), np.float32)}

    held_out = train


def bad_row(row: int) -> Callable[[int, int], str]:
    return lambda begin, end: f"row {row} is no image" if begin <= row < end else ""


class LateClaims(LocalClaims):
    """The first refusal reaches the books, and its answer is never heard."""

    is_late = True

    async def refuse(self, claim: int, reason: str) -> bool:
        is_refused = await super().refuse(claim, reason)
        if self.is_late:
            self.is_late = False
            await asyncio.sleep(1e6)
        return is_refused


async def train_all(feed: LedgerClient) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """What is trained on, and what is skipped."""
    trained: list[tuple[int, int]] = []
    skipped: list[tuple[int, int, int]] = []
    while True:
        try:
            batch = await feed.next(4, len(trained) + 1)
        except UnreadableError as error:
            skipped.append((error.begin, error.end, error.in_a_row))
            continue
        if batch is None:
            return trained, skipped
        trained.append((batch.begin, batch.end))
        await feed.committed(batch)


def test_samples_that_cannot_be_read_are_skipped_once_and_the_others_come() -> None:
    async def main() -> None:
        ledger, reading = Ledger(20), FakeReading(bad_row(9))
        trained, skipped = await train_all(LedgerClient("p", reading, LocalClaims(ledger)))
        assert (trained, skipped) == ([(0, 4), (4, 8), (12, 16), (16, 20)], [(8, 12, 1)])
        assert reading.reads.count((8, 12)) == MOST_EQUAL
        assert (ledger.committed, ledger.skipped, ledger.open, ledger.doubled, ledger.lost) == (16, 4, 0, 0, 0)
        assert ledger.finished

    run_virtual(main())


def test_a_call_that_is_cancelled_while_it_refuses_skips_them_once_and_says_so() -> None:
    async def main() -> None:
        ledger = Ledger(20)
        feed = LedgerClient("p", FakeReading(bad_row(1)), LateClaims(ledger))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000.0):
                await feed.next(4, 1)
        assert ledger.skipped == 4
        trained, skipped = await train_all(feed)
        assert skipped == [(0, 4, 1)]
        assert (len(trained), ledger.committed, ledger.skipped, ledger.lost) == (4, 16, 4, 0)

    run_virtual(main())


def test_what_was_taken_away_while_it_was_tried_is_not_skipped() -> None:
    async def main() -> None:
        ledger, reading = Ledger(8), FakeReading(lambda begin, end: "the disk is away")
        feed = LedgerClient("p", reading, LocalClaims(ledger))
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(feed.next(4, 1))
            await asyncio.sleep(0.1)
            assert feed.waiting == "waiting: samples 0 to 4 cannot be read: the disk is away"
            ledger.roll_back({})
            reading.fault = bad_row(100)
            batch = await waiting
        assert isinstance(batch, Batch)
        assert ledger.skipped == 0

    run_virtual(main())


def test_what_is_away_for_a_while_is_waited_for_and_longer_the_more_fails() -> None:
    async def main() -> None:
        loop, told = asyncio.get_running_loop(), list[str]()
        end = loop.time() + 1.0
        reading = FakeReading(lambda *_: "the disk is away" if loop.time() < end else "")
        patience = Patience(told.append)
        assert await patience.read(reading.train, 0, 4)
        assert patience.failed == 0
        assert told[0] == "waiting: samples 0 to 4 cannot be read: the disk is away"
        end = loop.time() + 1e6
        took = []
        for begin in (0, 4, 8):
            began = loop.time()
            with pytest.raises(DataError, match="the disk is away"):
                await patience.read(reading.train, begin, begin + 4)
            took.append(loop.time() - began)
        assert patience.failed == 3
        assert took[0] < 2.0 < took[1] < took[2]
        assert sum(took) > 40.0

    run_virtual(main())


def test_failures_that_differ_are_not_tried_for_ever() -> None:
    async def main() -> None:
        reading = FakeReading(lambda *_: f"worker {len(reading.reads)} has ended")
        with pytest.raises(DataError, match=f"worker {MOST} has ended"):
            await Patience(lambda text: None).read(reading.train, 0, 4)

    run_virtual(main())
