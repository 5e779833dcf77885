from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from distqat.wire.buffers import ALIGNMENT, LARGE, Buffers


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_a_block_is_used_again_when_nobody_refers_to_it() -> None:
    buffers = Buffers()
    kept, given = buffers.take(LARGE), buffers.take(LARGE)
    first = address(given)
    assert (buffers.used_bytes, buffers.free_bytes) == (2 * LARGE, 0)
    del given
    assert (buffers.used_bytes, buffers.free_bytes) == (LARGE, LARGE)
    again = buffers.take(LARGE)
    assert address(again) == first
    assert address(kept) != first
    assert (buffers.used_bytes, buffers.free_bytes) == (2 * LARGE, 0)


VIEWS: dict[str, Callable[[memoryview], object]] = {
    "a part": lambda view: view[5:9],
    "an array": lambda view: np.frombuffer(view, np.float32),
    "a view of an array": lambda view: np.frombuffer(view, np.uint8)[16:].view(np.float32)[3:7].reshape(2, 2),
    "a tensor": lambda view: torch.frombuffer(view, dtype=torch.float32),
    "a view of a tensor": lambda view: torch.frombuffer(view, dtype=torch.float32)[3:5].view(2, 1).detach(),
    "an array of a tensor": lambda view: torch.frombuffer(view, dtype=torch.float32).numpy()[1:],
}


@pytest.mark.parametrize("kind", VIEWS)
def test_any_view_holds_it(kind: str) -> None:
    buffers = Buffers()
    held = [VIEWS[kind](buffers.take(LARGE))]
    assert buffers.used_bytes == LARGE
    assert buffers.free_bytes == 0
    held.clear()
    assert buffers.used_bytes == 0


def test_no_more_waits_than_is_in_use() -> None:
    buffers = Buffers()
    blocks = [buffers.take(LARGE * (1 + index % 3)) for index in range(12)]
    while blocks:
        blocks.pop()
        assert buffers.free_bytes <= buffers.used_bytes
    assert (buffers.used_bytes, buffers.free_bytes) == (0, 0)


def test_small_ones_are_not_counted() -> None:
    buffers = Buffers()
    view = buffers.take(LARGE - 1)
    assert len(view) == LARGE - 1
    assert buffers.used_bytes == 0


@pytest.mark.parametrize("size", [0, 1, 100, LARGE, LARGE + 1])
def test_it_can_be_written_to_and_is_aligned(size: int) -> None:
    view = Buffers().take(size)
    assert len(view) == size
    assert not view.readonly
    assert not size or address(view) % ALIGNMENT == 0
    view[:] = bytes(size)


def test_threads_never_hold_the_same_block() -> None:
    buffers, faults = Buffers(), []

    def work(name: int) -> None:
        for _ in range(50):
            view = buffers.take(LARGE)
            view[:8] = name.to_bytes(8, "little")
            view[-8:] = view[:8]
            if int.from_bytes(view[:8], "little") != name or view[-8:] != view[:8]:
                faults.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert buffers.used_bytes == 0
