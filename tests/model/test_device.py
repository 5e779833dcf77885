from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from distqat.errors import ConfigError, OverloadedError, TensorError
from distqat.model.device import Device, Priority
from tests.support import run, run_virtual, until


class Gate:
    """Work that keeps the device busy until it is let go."""

    def __init__(self) -> None:
        self.is_running = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> None:
        self.is_running.set()
        assert self.go.wait(10)


def test_runs_on_one_thread_that_is_not_the_loops() -> None:
    async def main() -> None:
        async with Device.open("cpu") as device:
            threads = await asyncio.gather(*(device.run(threading.get_ident) for _ in range(5)))
            assert len(set(threads)) == 1
            assert threads[0] != threading.get_ident()
            assert device.statistics().jobs == 5

    run(main())


def test_backward_first_then_the_order_of_asking() -> None:
    order: list[str] = []

    async def main() -> None:
        gate = Gate()

        def work(name: str) -> Callable[[], None]:
            return lambda: order.append(name)

        async with Device.open("cpu") as device, asyncio.TaskGroup() as group:
            group.create_task(device.run(gate))
            await until(gate.is_running.is_set)
            for number in range(2):
                for priority in reversed(Priority):
                    group.create_task(device.run(work(f"{priority.name} {number}"), priority))
            await until(lambda: device.statistics().waiting == 6)
            gate.go.set()

    run(main())
    assert order == ["BACKWARD 0", "BACKWARD 1", "FORWARD 0", "FORWARD 1", "OTHER 0", "OTHER 1"]


def test_a_full_inbox_makes_the_caller_wait_and_keeps_no_backward_out() -> None:
    async def main() -> None:
        gate = Gate()
        done: list[str] = []
        async with Device.open("cpu", inbox=2) as device, asyncio.TaskGroup() as group:
            group.create_task(device.run(gate))
            await until(gate.is_running.is_set)
            for number in range(5):
                group.create_task(device.run(partial(done.append, f"forward {number}"), Priority.FORWARD))
            await until(lambda: device.statistics().waiting == 2)
            await asyncio.sleep(0)
            assert device.statistics().waiting == 2
            group.create_task(device.run(partial(done.append, "backward"), Priority.BACKWARD))
            await until(lambda: device.statistics().waiting == 3)
            gate.go.set()
        assert done == ["backward", *(f"forward {number}" for number in range(5))]

    run(main())


def test_an_error_reaches_the_caller_and_the_device_lives_on() -> None:
    def fail() -> None:
        raise TensorError("expected something else")

    async def main() -> None:
        async with Device.open("cpu") as device:
            with pytest.raises(TensorError, match="something else"):
                await device.run(fail)
            assert await device.run(lambda: 7) == 7
            assert device.statistics().jobs == 2

    run(main())


def test_a_cancelled_job_that_waits_is_taken_out() -> None:
    async def main() -> None:
        gate, other = Gate(), Gate()
        async with Device.open("cpu") as device, asyncio.TaskGroup() as group:
            group.create_task(device.run(gate))
            await until(gate.is_running.is_set)
            waiting = group.create_task(device.run(other, Priority.BACKWARD))
            await until(lambda: device.statistics().waiting == 1)
            waiting.cancel()
            await until(waiting.done)
            assert waiting.cancelled()
            assert device.statistics().waiting == 0
            gate.go.set()
            assert await device.run(lambda: 1) == 1
            assert not other.is_running.is_set()

    run(main())


def test_a_cancelled_job_that_runs_goes_to_its_end_first() -> None:
    async def main() -> None:
        gate = Gate()
        async with Device.open("cpu") as device, asyncio.TaskGroup() as group:
            running = group.create_task(device.run(gate))
            await until(gate.is_running.is_set)
            running.cancel()
            await until(running.done)
            next_one = group.create_task(device.run(lambda: 1))
            await until(lambda: device.statistics().waiting == 1)
            assert not next_one.done()
            gate.go.set()
            assert await next_one == 1
            assert device.statistics().jobs == 2

    run(main())


def test_the_running_job_is_told_of() -> None:
    async def main() -> None:
        gate = Gate()
        async with Device.open("cpu") as device, asyncio.TaskGroup() as group:
            assert device.statistics().running_seconds is None
            assert repr(device) == "<Device cpu idle, 0 waiting, 0 done>"
            job = group.create_task(device.run(gate))
            await until(gate.is_running.is_set)
            running = device.statistics().running_seconds
            assert running is not None
            assert running >= 0
            assert repr(device) == "<Device cpu busy, 0 waiting, 0 done>"
            gate.go.set()
            await job
            after = device.statistics()
            assert after.running_seconds is None
            assert after.busy_seconds == after.longest_seconds > 0

    run(main())


def test_closing_joins_the_thread_and_refuses_what_waits() -> None:
    async def main() -> None:
        gate = Gate()
        thread: list[threading.Thread] = []

        def enter() -> None:
            thread.append(threading.current_thread())
            gate()

        async with asyncio.TaskGroup() as group:
            async with Device.open("cpu") as device:
                running = group.create_task(device.run(enter))
                waiting = asyncio.gather(device.run(lambda: 1), return_exceptions=True)
                await until(lambda: gate.is_running.is_set() and device.statistics().waiting == 1)
                asyncio.get_running_loop().call_later(0.02, gate.go.set)
            assert not thread[0].is_alive()
            await running
            (refused,) = await waiting
            assert isinstance(refused, OverloadedError)
        with pytest.raises(OverloadedError, match="device cpu is closed"):
            await device.run(lambda: 1)

    run(main())


def test_a_virtual_clock_stands_still_while_the_device_computes() -> None:
    async def main() -> None:
        gate = Gate()
        loop = asyncio.get_running_loop()
        async with Device.open("cpu") as device, asyncio.TaskGroup() as group:
            timer = group.create_task(asyncio.sleep(3600))
            job = group.create_task(device.run(gate))
            threading.Timer(0.05, gate.go.set).start()
            await job
            assert loop.time() < 1
            await timer
            assert loop.time() >= 3600

    run_virtual(main())


def test_threads_are_those_that_were_asked_for() -> None:
    async def main() -> None:
        async with Device.open("cpu", threads=1) as device:
            assert await device.run(torch.get_num_threads) == 1
            assert device.torch_device == torch.device("cpu")

    run(main())


@pytest.mark.parametrize("name", ["tpu", "cpu:0", "cuda:", "cuda:x", "", "cuda:999"])
def test_devices_that_are_not_there(name: str) -> None:
    async def main() -> None:
        async with Device.open(name):
            raise AssertionError("opened")

    with pytest.raises(ConfigError, match=f"device '{name}'"):
        run(main())


@pytest.mark.parametrize("available", [False, True])
def test_cuda_that_is_not_there_is_said(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    async def main() -> None:
        async with Device.open("cuda:2"):
            raise AssertionError("opened")

    with pytest.raises(ConfigError, match="there are 2 CUDA devices" if available else "has no CUDA; use cpu"):
        run(main())


def test_work_on_cuda_is_over_when_the_device_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)

    def work() -> str:
        done.append("told")
        return "result"

    async def main() -> None:
        cuda = Device("cuda", torch.device("cuda", 0), 1)
        assert cuda.to_end(work)() == "result"
        assert done == ["told", torch.device("cuda", 0)]
        assert Device("cpu", torch.device("cpu"), 1).to_end(work) is work

    run(main())


def test_what_took_long_once_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distqat.model.device.RECENT", 4)

    async def scenario() -> None:
        async with Device.open("cpu") as device:
            await device.run(partial(time.sleep, 0.3))
            assert device.statistics().longest_seconds >= 0.3
            for _ in range(4):
                await device.run(lambda: None)
            assert device.statistics().longest_seconds < 0.3

    run(scenario())


STOPPED = """
import asyncio, sys
from distqat.model.device import Device

def work() -> None:
    print("running", flush=True)
    sys.stdin.readline()

async def main() -> None:
    async with Device.open("cpu") as device:
        await device.run(work)
        print(device.statistics().longest_seconds, flush=True)

asyncio.run(main())
"""


def test_what_a_stopped_process_stands_still_for_is_no_length_of_its_work() -> None:
    command = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        # That it lasts is all that is to be seen of a stop.
        time.sleep(2.0)
        child.send_signal(signal.SIGCONT)
        child.stdin.write("\n")
        child.stdin.flush()
        assert float(child.stdout.readline()) < 2.0
