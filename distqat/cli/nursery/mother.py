"""Run as a process: reads what a daemon is made of, once, and forks one for each order.

Whoever forks must be the only thread, since no other is there in the child. So nothing here computes, listens or runs
an event loop; what is read only defines. A forked daemon comes out of `tend` and runs what `distqatd` runs.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys
from contextlib import suppress

from distqat.cli import distqatd
from distqat.cli.nursery.kernel import die_with_parent, num_threads
from distqat.cli.nursery.order import Born, Order, Ready, close_all, receive_order, send_answer
from distqat.peer.roster import read_roles

LATE = ("distqat.cli.serving", "distqat.cli.local", "distqat.roles.local")
"""What the command imports only when it runs, beside the roles."""


def main() -> None:
    """The argument is the file descriptor of the control socket."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        for module in LATE:
            importlib.import_module(module)
        read_roles()
        # What is here now lives as long as the process: looking through it would only copy its pages.
        gc.collect()
        gc.freeze()
        is_child = tend(control)
    if is_child:
        distqatd.main()


def tend(control: socket.socket) -> bool:
    """Fork for each order; True in a child, which is then what was ordered; False when nobody orders any more."""
    with suppress(ConnectionError):  # Whoever ordered is gone.
        send_answer(control, Ready(num_threads()))
        while (received := receive_order(control)) is not None:
            order, files = received
            try:
                born = bear(order)
                if born is None:
                    become(order, files)
                    return True
            finally:
                close_all(files)
            send_answer(control, born)
    return False


def bear(order: Order) -> Born | None:
    """Fork a process and orphan it, so that whoever orders adopts it; returns what became of it, and None in it."""
    gate, open_gate = os.pipe()
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        _orphan(tell)
        close_all((told, open_gate))
        # It is adopted when the gate opens; if the gate is lost, so is whoever would know of it.
        if not os.read(gate, 1) or not die_with_parent(order.parent):
            os._exit(1)
        # Nobody hears of it before it dies with its parent, whoever stops it then.
        os.write(tell, b"!")
        close_all((tell, gate))
        return None
    close_all((tell, gate))
    try:
        text = os.read(told, 32)
        os.waitpid(middle, 0)
        if not text:
            return Born(0, "a process could not be forked")
        os.write(open_gate, b"!")
        if not os.read(told, 1):
            return Born(0, "a forked process has found another parent")
        return Born(int(text))
    finally:
        close_all((told, open_gate))


def _orphan(tell: int) -> None:
    """Fork, tell the child's number and end; returns in the child."""
    child = -1
    try:
        child = os.fork()
    finally:
        if child != 0:
            if child > 0:
                os.write(tell, str(child).encode())
            os._exit(0)


def become(order: Order, files: list[int]) -> None:
    """Take the place, the files and the words of the daemon that was ordered."""
    os.setsid()
    for standard, file in enumerate(files):
        os.dup2(file, standard)
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = ["distqatd", *order.arguments]


if __name__ == "__main__":
    main()
