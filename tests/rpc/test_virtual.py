"""The clock that jumps."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from distqat.rpc.virtual import DeadlockError, VirtualTimeLoop
from tests.support import run_virtual


def test_an_hour_passes_in_less_than_a_second() -> None:
    async def tick() -> float:
        for _ in range(3600):
            await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run_virtual(tick(), debug=False) == pytest.approx(3600, abs=1e-6)
    assert time.perf_counter() - began < 1.0


def test_timers_fire_in_their_order_at_their_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        for delay in (3.0, 0.5, 2.0):
            loop.call_later(delay, lambda: seen.append(loop.time()))
        await asyncio.sleep(10)
        assert seen == pytest.approx([0.5, 2.0, 3.0])

    run_virtual(main())


def test_the_clock_stands_still_while_a_job_runs() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        may_end = threading.Event()
        later = loop.call_later(5, lambda: None)
        loop.call_soon(may_end.set)
        await loop.run_in_executor(None, may_end.wait)
        assert loop.time() == 0.0
        later.cancel()

    run_virtual(main())


def test_a_thread_wakes_the_loop_while_the_clock_is_held() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        told = asyncio.Event()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(told.set,))
        with loop.hold():
            loop.call_later(5, lambda: None)
            thread.start()
            await told.wait()
            assert loop.time() == 0.0
        thread.join()

    run_virtual(main())


def test_a_thread_wakes_a_loop_that_has_nothing_to_do() -> None:
    async def main() -> None:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(told.set,))
        thread.start()
        await told.wait()
        thread.join()

    run_virtual(main())


def test_sockets_are_served_before_the_clock_moves() -> None:
    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(2))
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hi")
            assert await reader.readexactly(2) == b"hi"
            writer.close()
            await writer.wait_closed()

    run_virtual(main())


def test_tasks_that_wait_for_nothing_are_a_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    # Threads of other tests in this process, which the loop would have to wait for, are none of this test's.
    monkeypatch.setattr(threading, "active_count", lambda: 1)

    async def main() -> None:
        await asyncio.sleep(7)
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match=r"at 7\.0"):
        run_virtual(main())


def test_a_limit_is_in_virtual_seconds() -> None:
    with pytest.raises(TimeoutError):
        run_virtual(asyncio.sleep(1000), timeout=999)


def test_repr_shows_the_time() -> None:
    async def main() -> None:
        await asyncio.sleep(1.5)
        assert repr(asyncio.get_running_loop()) == "<VirtualTimeLoop 1.500000 s>"

    run_virtual(main())


def test_those_who_wait_for_one_moment_do_not_wake_each_other_before_it() -> None:
    """A timer may be early by the resolution of the clock, as asyncio sees it; who looks then waits again."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        moment = 10.0

        async def wait(delay: float) -> None:
            await asyncio.sleep(delay)
            looks = 0
            while loop.time() < moment:
                looks += 1
                assert looks < 10, f"the clock stands at {loop.time()!r}"
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(moment):
                        await asyncio.Event().wait()

        # Not quite ten seconds, as it comes of adding; the second one is a turn of the loop later.
        await asyncio.sleep(moment - 2e-14)
        await asyncio.gather(wait(0), wait(1e-15))

    run_virtual(main(), timeout=20.0)
