"""Batches on their way from the claim to the books."""

from __future__ import annotations

import asyncio

from distqat.data.claims import Claim
from distqat.data.client import Batch
from distqat.roles.supply import Portion, Supply
from tests.support import run_virtual, until


class FakeData:
    """Hands out `left` batches of what is asked for, one after the other, each after a second."""

    waiting = "waiting: nobody knows for what"

    def __init__(self, left: int = 100) -> None:
        self.left = left
        self.asked: list[int] = []
        self.booked: list[int] = []
        self.returned: list[int] = []
        self.refused: list[int] = []
        self._begin = 0

    async def next(self, samples: int, step: int = 0) -> Batch | None:
        self.asked.append(samples)
        await asyncio.sleep(1.0)
        if not self.left:
            return None
        self.left -= 1
        self._begin += samples
        return Batch(len(self.asked), self._begin - samples, self._begin, {})

    async def committed(self, batch: Batch) -> None:
        self.booked.append(batch.begin)

    async def give_back(self, batch: Batch) -> None:
        self.returned.append(batch.begin)

    async def refuse(self, batch: Batch, reason: str) -> None:
        self.refused.append(batch.begin)


async def take(supply: Supply) -> Portion:
    portion = await supply.take()
    assert portion is not None
    return portion


def test_one_batch_is_claimed_ahead_and_no_more() -> None:
    async def main() -> None:
        data = FakeData()
        supply = Supply(data, lambda: 4)
        assert not await supply.restart(7)
        assert supply.waiting == data.waiting
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(supply.keep_claiming())
            assert (await take(supply)).step == 8
            # While that one is worked on:
            await asyncio.sleep(50.0)
            assert data.asked == [4, 4]
            assert supply.waiting == ""
            before = loop.time()
            assert await take(supply) == Portion(9, Batch(2, 4, 8, {}))
            assert loop.time() == before
            assert repr(supply) == "<Supply 2 batches, 0 ahead of step 9>"
            claiming.cancel()

    run_virtual(main())


def test_the_size_is_asked_for_when_a_batch_is_claimed() -> None:
    async def main() -> None:
        data, sizes = FakeData(), iter((4, 6, 8, 10))
        supply = Supply(data, lambda: next(sizes))
        await supply.restart(0)
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(supply.keep_claiming())
            assert [(await take(supply)).batch.samples for _ in range(3)] == [4, 6, 8]
            claiming.cancel()

    run_virtual(main())


def test_another_route_gets_what_is_not_committed_again() -> None:
    async def main() -> None:
        data = FakeData()
        supply = Supply(data, lambda: 4)
        await supply.restart(0)
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(supply.keep_claiming())
            first = [await take(supply) for _ in range(3)]
            await until(lambda: len(data.asked) == 4)
            await supply.book(1)
            claiming.cancel()
        # The claim that was cut off gave nothing; the second step turns out to be committed.
        assert await supply.restart(2) == 1
        assert data.booked == [0, 4]
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(supply.keep_claiming())
            assert await take(supply) == first[2]
            assert (await take(supply)).step == 4
            claiming.cancel()

    run_virtual(main())


def test_the_end_of_the_budget_ends_it_but_not_before_what_is_claimed_is_out() -> None:
    async def main() -> None:
        data = FakeData(left=2)
        supply = Supply(data, lambda: 4)
        await supply.restart(0)
        async with asyncio.TaskGroup() as group:
            group.create_task(supply.keep_claiming())
            assert [(await take(supply)).step for _ in range(2)] == [1, 2]
            assert await supply.take() is None

    run_virtual(main())


def test_whoever_ends_it_gives_back_the_rest() -> None:
    async def main() -> None:
        data = FakeData()
        supply = Supply(data, lambda: 4)
        await supply.restart(0)
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(supply.keep_claiming())
            for _ in range(2):
                await take(supply)
            await until(lambda: len(data.asked) == 3)
            taking = group.create_task(supply.take())
            await asyncio.sleep(0)
            supply.end()
            assert await taking is None
            claiming.cancel()
        await supply.book(1)
        await supply.restart(1)
        await supply.give_back()
        assert (data.booked, data.returned) == ([0], [4])
        # For good, also on another route.
        await supply.restart(1)
        assert await supply.take() is None

    run_virtual(main())


def test_what_a_broken_route_was_given_is_nobodys_to_give_back() -> None:
    async def main() -> None:
        data = FakeData()
        supply = Supply(data, lambda: 4)
        await supply.restart(0)
        async with asyncio.TaskGroup() as group:
            claiming = group.create_task(supply.keep_claiming())
            await take(supply)
            await take(supply)
            await until(lambda: len(data.asked) == 3)
            await asyncio.sleep(2.0)
            claiming.cancel()
        await supply.book(0)
        await supply.give_back()
        # Steps 1 and 2 may be committed; step 3 is here alone.
        assert (data.booked, data.returned) == ([], [8])
        assert supply.under_way is None

    run_virtual(main())


def test_a_refused_batch_is_out_and_the_next_takes_its_step() -> None:
    async def main() -> None:
        data = FakeData()
        supply = Supply(data, lambda: 4)
        await supply.restart(7)
        claiming = asyncio.ensure_future(supply.keep_claiming())
        first, second = await take(supply), await take(supply)
        claiming.cancel()
        assert supply.under_way == first.batch
        assert await supply.refuse("it holds NaN") == first.batch
        assert data.refused == [first.batch.begin]
        assert await supply.restart(7)
        assert await take(supply) == Portion(8, second.batch)

    run_virtual(main())


def test_with_care_there_is_one_step_at_a_time() -> None:
    async def main() -> None:
        supply = Supply(FakeData(), lambda: 4)
        supply.is_careful = True
        await supply.restart(0)
        claiming = asyncio.ensure_future(supply.keep_claiming())
        assert (await take(supply)).step == 1
        waiting = asyncio.ensure_future(supply.take())
        await asyncio.sleep(10.0)
        assert not waiting.done()
        await supply.book(1)
        second = await waiting
        assert second is not None
        assert second.step == 2
        claiming.cancel()

    run_virtual(main())


def test_what_is_claimed_and_what_was_booked_last_is_told() -> None:
    async def main() -> None:
        supply = Supply(FakeData(3), lambda: 4)
        await supply.restart(0)
        claiming = asyncio.ensure_future(supply.keep_claiming())
        for _ in range(3):
            await take(supply)
        await claiming
        await supply.book(2)
        assert supply.claims("ada") == (Claim(3, "ada", 8, 12, 3),)
        assert supply.booked("ada") == (Claim(1, "ada", 0, 4, 1), Claim(2, "ada", 4, 8, 2))
        assert supply.booked("ada", 1) == (Claim(2, "ada", 4, 8, 2),)

    run_virtual(main())
