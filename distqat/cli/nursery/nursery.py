"""The nursery as a command has it: orders daemons, and runs the command itself where forking fails."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from distqat.cli.nursery.kernel import adopting, can_adopt
from distqat.cli.nursery.order import Born, Order, Ready, receive_answer, send_order
from distqat.cli.nursery.process import Adopted, Birth, Executing, Process, Starter, environment

log = logging.getLogger(__name__)

READ_SECONDS = 120.0
"""For torch and the roles to be read, on a slow and busy machine."""

ANSWER_SECONDS = 30.0
"""For a fork."""


class Nursery:
    """Starts daemons that are forked and are children of this process; made by `open_nursery`."""

    def __init__(self, mother: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.mother = mother
        self._control = control
        self._turn = threading.Lock()  # One order at a time, and orphans are adopted only meanwhile.
        self._is_ready = False  # Nothing was heard of the mother yet.
        self._executing: Executing | None = None  # None while forking works; afterwards all are started so.

    def __repr__(self) -> str:
        return f"<Nursery {self.mother.pid}, {'broken' if self._executing is not None else 'works'}>"

    def wait_ready(self) -> None:
        """Wait until everything is read, or it is known that nothing can be forked."""
        with self._turn:
            try:
                self._hear()
            except OSError as error:
                self._give_up(error)

    def start(self, birth: Birth) -> Process:
        """Fork a daemon, the first one when everything is read; where that fails the command is run."""
        with self._turn:
            if self._executing is None:
                try:
                    return self._order(birth)
                except OSError as error:
                    self._give_up(error)
            return (self._executing or Executing()).start(birth)

    def _give_up(self, error: OSError) -> None:
        log.warning("daemons are not forked, so each takes longer to start: %s", error)
        self._executing = Executing()
        # It may only be late, and must not fork what nobody waits for.
        self.mother.kill()

    def _order(self, birth: Birth) -> Process:
        self._hear()
        order = Order(list(birth.arguments), dict(environment()), os.getcwd(), os.getpid())
        with open(os.devnull, "rb") as nothing, adopting():
            send_order(self._control, order, (nothing.fileno(), birth.stdout, birth.stderr))
            born = Born(**receive_answer(self._control))
        if not born.pid:
            raise OSError(born.problem)
        process = Adopted(born.pid)
        process.poll()  # Raises ChildProcessError if it is not ours.
        return process

    def _hear(self) -> None:
        if self._is_ready or self._executing is not None:
            return
        self._control.settimeout(READ_SECONDS)
        ready = Ready(**receive_answer(self._control))
        if ready.num_threads != 1:
            raise OSError(f"what was read has started {ready.num_threads - 1} threads, so nothing can be forked")
        self._is_ready = True
        self._control.settimeout(ANSWER_SECONDS)


@contextmanager
def open_nursery() -> Iterator[Starter]:
    """A nursery, which reads what it needs while others work; where the system has none, the command itself is run.

    At the end the nursery is gone; daemons are left as they are.
    """
    if not can_adopt():
        yield Executing()
        return
    with ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        with theirs:
            # In a session of its own, so that no Ctrl-C ends it: it ends when our side of the socket is closed.
            mother = subprocess.Popen(
                [sys.executable, "-m", "distqat.cli.nursery.mother", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment(),
                start_new_session=True,
            )
        stack.callback(mother.wait)
        stack.callback(mother.kill)
        yield Nursery(mother, ours)
