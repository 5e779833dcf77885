"""Silence is noticed only while something is owed."""

from __future__ import annotations

import asyncio

import pytest

from distqat.pipeline.watch import Watch
from tests.support import run_virtual


async def seconds_until_silent(watch: Watch, limit: float = 100.0) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(limit):
        await watch.wait_silent()
    return loop.time() - began


def test_nothing_is_owed_nothing_happens() -> None:
    async def scenario() -> None:
        watch = Watch(3.0)
        with pytest.raises(TimeoutError):
            await seconds_until_silent(watch)
        watch.owe()
        watch.paid()
        with pytest.raises(TimeoutError):
            await seconds_until_silent(watch)
        # The time without debts does not count.
        watch.owe()
        assert await seconds_until_silent(watch) == pytest.approx(3.0)

    run_virtual(scenario())


def test_a_part_of_a_long_message_is_a_sign_of_life() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        watch = Watch(3.0, lambda: min(loop.time(), began + 5.0))
        watch.owe()
        assert await seconds_until_silent(watch) == pytest.approx(8.0)

    run_virtual(scenario())


def test_every_sign_of_life_starts_the_clock_again() -> None:
    async def scenario() -> None:
        watch = Watch(3.0)
        watch.owe()
        watch.owe()

        async def signs() -> None:
            for _ in range(5):
                await asyncio.sleep(2.0)
                watch.heard()
            watch.paid()

        async with asyncio.TaskGroup() as group:
            group.create_task(signs())
            assert await seconds_until_silent(watch) == pytest.approx(13.0)

    run_virtual(scenario())


def test_it_says_what_it_counts() -> None:
    assert repr(Watch(3.0)) == "<Watch 0 owed, patience 3.0 s>"
