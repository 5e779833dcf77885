"""Large blocks of memory that are used again.

The system clears every page that a process touches for the first time: for vectors of many megabytes, made anew in
every round, that costs as much as working on them. So a block comes back when nobody refers to it any more, and waits
for who wants one of its size. Never does more memory wait than is in use.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes; what a decoded tensor starts at, so that it need not be copied (model/boundary.py)."""

LARGE = 4 << 20
"""Bytes from which a block is used again, and numpy asks the system for huge pages."""

Block = npt.NDArray[np.uint8]


class Buffers:
    """Hands out blocks of any size, not cleared; any thread may call it."""

    def __init__(self) -> None:
        # Guards everything below; entered again when a block is given up while another is taken.
        self._lock = threading.RLock()
        self._free: dict[int, list[Block]] = {}  # By size, in the order in which they came back; none is empty.
        self.free_bytes = 0
        self.used_bytes = 0  # Of large blocks.

    def __repr__(self) -> str:
        return f"<Buffers {self.used_bytes} bytes in use, {self.free_bytes} free>"

    def take(self, size: int) -> memoryview:
        """So many writable bytes at a multiple of ALIGNMENT; they come back by themselves with their last view."""
        if size < LARGE:
            return _fresh(size).data
        with self._lock:
            block = self._pop(size)
            self.used_bytes += size
        if block is None:
            block = _fresh(size)
        # An array that is not a view of another array: all views of it refer to it, not to the block.
        handle = np.frombuffer(block.data, np.uint8)
        weakref.finalize(handle, self._give_up, block).atexit = False
        return handle.data

    def _give_up(self, block: Block) -> None:
        size = block.nbytes
        with self._lock:
            self.used_bytes -= size
            self._free.setdefault(size, []).append(block)
            self.free_bytes += size
            # Sizes that nobody has given up for long go first.
            for size in list(self._free):
                while self.free_bytes > self.used_bytes and self._pop(size) is not None:
                    pass

    def _pop(self, size: int) -> Block | None:
        waiting = self._free.get(size)
        if not waiting:
            return None
        block = waiting.pop()
        self.free_bytes -= size
        if not waiting:
            del self._free[size]
        return block


BUFFERS = Buffers()
"""Of this process."""


def _fresh(size: int) -> Block:
    block = np.empty(size + ALIGNMENT - 1, dtype=np.uint8)
    begin = -block.ctypes.data % ALIGNMENT
    return block[begin : begin + size]
