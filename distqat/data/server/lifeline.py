"""How a process is bound to the one that started it: a socket that closes, a signal of the kernel, and silence."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

BEAT_SECONDS = 0.5
"""Between two words of a server that lives."""

_SET_DEATH_SIGNAL = 1

T = TypeVar("T")


def on_parents_death(number: signal.Signals) -> None:
    """Let the kernel send this process that signal when the thread that started it is gone; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, ctypes.c_ulong(number), *[ctypes.c_ulong(0)] * 3)


async def hear(listen: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What the other process says. Raises TimeoutError: it has said nothing for so long.

    It listens twice, each time for half of it. If this process itself was stopped, or its loop blocked, the first limit
    is over when it wakes up, also if something was said meanwhile; then the second finds it. So what is cut off while
    it listens must lose nothing.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds / 2):
            return await listen()
    async with asyncio.timeout(seconds / 2):
        return await listen()


class Lifeline:
    """The server's end of the control socket: lines of JSON. Nothing here ever waits for the client."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()  # One line at a time.

    def __repr__(self) -> str:
        return f"<Lifeline {self._control.fileno()}>"

    def read_order(self) -> dict[str, str]:
        """The first line. Raises ValueError, OSError."""
        text = b""
        while not text.endswith(b"\n"):
            part = self._control.recv(1 << 16)
            if not part:
                raise ConnectionResetError("whoever started this process is gone")
            text += part
        return dict(json.loads(text))

    def say(self, line: Mapping[str, str | int]) -> None:
        """Tell the client; a line that it has no room for is lost, since it does not read."""
        data = json.dumps(dict(line)).encode() + b"\n"
        with self._lock:
            try:
                self._control.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                return  # It is gone, which `until_gone` sees, or stopped.

    def until_gone(self) -> None:
        """Wait until the client is gone, or lets go."""
        try:
            while self._control.recv(4096):
                pass
        except OSError:
            return

    @contextmanager
    def saying(self, line: Mapping[str, str | int]) -> Iterator[None]:
        """Meanwhile say this again and again, from another thread, and end the process with the client."""
        done = threading.Event()

        def work() -> None:
            self._control.settimeout(BEAT_SECONDS)
            while not done.is_set():
                self.say(line)
                try:
                    if not self._control.recv(4096):
                        os._exit(0)
                except TimeoutError:
                    continue
                except OSError:
                    os._exit(0)

        thread = threading.Thread(target=work, name="lifeline", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._control.settimeout(None)

    def end_with(self, clean_up: Callable[[], None]) -> None:
        """From now on a thread waits for the client's end, cleans up and ends the process, whatever the others do."""

        def work() -> None:
            self.until_gone()
            clean_up()
            os._exit(0)

        threading.Thread(target=work, name="lifeline", daemon=True).start()
