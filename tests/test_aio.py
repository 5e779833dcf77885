from __future__ import annotations

import asyncio
import logging
import random

import pytest

from distqat.aio import Backoff, Mailbox, supervise
from distqat.errors import GivenUpError, OverloadedError, RouteError
from tests.support import run_virtual


def test_a_mailbox_keeps_order_and_its_bound() -> None:
    async def main() -> None:
        box: Mailbox[int] = Mailbox("inbox of stage 0", 2)
        box.put_nowait(1)
        await box.put(2)
        assert (len(box), repr(box)) == (2, "<Mailbox inbox of stage 0 2/2>")
        with pytest.raises(OverloadedError, match=r"inbox of stage 0 is full \(2 items\)"):
            box.put_nowait(3)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(box.put(3))
            await asyncio.sleep(1)
            assert not waiting.done()
            assert await box.get() == 1
        assert [await box.get(), await box.get()] == [2, 3]

    run_virtual(main())


def test_pauses_grow_to_the_most_and_start_again() -> None:
    backoff = Backoff(first=1.0, most=10.0, random=random.Random(1))
    pauses = [backoff.next() for _ in range(6)]
    for pause, whole in zip(pauses, (1, 2, 4, 8, 10, 10), strict=True):
        assert whole / 2 <= pause <= whole
    backoff.reset()
    assert backoff.next() <= 1.0


def test_pauses_never_overflow() -> None:
    backoff = Backoff(first=0.1, most=5.0, attempts=100_000)
    assert 2.5 <= backoff.next() <= 5.0


def test_what_is_supervised_runs_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        failures: list[BaseException] = []
        runs = 0

        async def work() -> None:
            nonlocal runs
            runs += 1
            if runs == 1:
                raise RouteError("the hop to stage 1 broke")
            if runs == 2:
                raise ZeroDivisionError

        with caplog.at_level(logging.WARNING, "distqat"):
            await supervise("pipeline p1", work, Backoff(), failures.append)
        assert runs == 3
        assert [type(error) for error in failures] == [RouteError, ZeroDivisionError]

    run_virtual(main())
    expected, fault = caplog.records
    assert expected.getMessage() == "pipeline p1 failed: the hop to stage 1 broke"
    assert expected.exc_info is None
    assert fault.getMessage() == "pipeline p1 failed: ZeroDivisionError"
    assert fault.exc_info  # A fault of ours comes with its traceback.


def test_work_that_held_for_long_starts_with_short_pauses_again() -> None:
    async def main() -> None:
        backoff = Backoff(first=1.0, most=5.0, attempts=9)
        attempts: list[int] = []

        async def work() -> None:
            if attempts:
                return
            await asyncio.sleep(60)
            raise RouteError("broke")

        await supervise("work", work, backoff, lambda _: attempts.append(backoff.attempts))
        assert (attempts, backoff.attempts) == ([9], 1)

    run_virtual(main())


def test_cancellation_passes_through() -> None:
    async def main() -> None:
        async def work() -> None:
            await asyncio.sleep(1e5)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(supervise("work", work, Backoff()))
            await asyncio.sleep(1)
            task.cancel()
        assert task.cancelled()

    run_virtual(main())


def test_after_too_many_failures_in_a_row_it_is_given_up() -> None:
    async def main() -> None:
        runs = 0

        async def work() -> None:
            nonlocal runs
            runs += 1
            if runs == 3:
                await asyncio.sleep(60)  # That was a success, for a while.
            raise ZeroDivisionError("no samples") if runs != 4 else RouteError("this may pass")

        with pytest.raises(GivenUpError, match="given up after 3 failures in a row: no samples"):
            await supervise("work", work, Backoff(), most=3)
        # Two, then a long run, then one that may pass and counts as the first, and two more.
        assert runs == 6

    run_virtual(main())


def test_what_was_given_up_within_is_not_tried_again() -> None:
    async def main() -> None:
        runs = 0

        async def work() -> None:
            nonlocal runs
            runs += 1
            async with asyncio.TaskGroup():
                raise GivenUpError("the expert failed too often")

        with pytest.raises(GivenUpError, match="the expert failed too often"):
            await supervise("role", work, Backoff())
        assert runs == 1

    run_virtual(main())
