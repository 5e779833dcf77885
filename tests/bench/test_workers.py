"""Processes of a bench answer, and their death is told."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.workers import WorkerError, open_worker
from tests.support import run


class Calculator:
    async def add(self, left: int, right: int) -> tuple[int, int]:
        return left + right, os.getpid()

    async def die(self) -> None:
        os._exit(3)


@asynccontextmanager
async def open_calculator() -> AsyncIterator[Calculator]:
    yield Calculator()


def test_another_process_answers() -> None:
    async def scenario() -> None:
        async with open_worker("calculator", open_calculator) as worker:
            total, pid = await worker.ask("add", 2, 3)
        assert total == 5
        assert pid != os.getpid()

    run(scenario())


def test_a_process_that_dies_is_named() -> None:
    async def scenario() -> None:
        async with open_worker("calculator", open_calculator) as worker:
            await worker.ask("die")

    with pytest.raises(WorkerError, match="calculator died while it was asked to die"):
        run(scenario())
