"""What goes over the control socket: an order with three files to it, and the answer. One message is one datagram."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

ORDER_BYTES = 1 << 20
"""A longer order is refused by the socket long before."""

ANSWER_BYTES = 4096

NUM_FILES = 3
"""Standard input, output and error, in this order."""


@dataclass(frozen=True)
class Order:
    """Which daemon to fork."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    """Where it works."""
    parent: int
    """Process id of who orders, and is to be its parent."""


@dataclass(frozen=True)
class Ready:
    """Everything is read."""

    num_threads: int


@dataclass(frozen=True)
class Born:
    """The answer to an order."""

    pid: int
    """0: there is none, see `problem`."""
    problem: str = ""


def send_order(control: socket.socket, order: Order, files: Sequence[int]) -> None:
    """Raises OSError: nobody is there, or the order is too long."""
    socket.send_fds(control, [json.dumps(asdict(order)).encode()], list(files))


def receive_order(control: socket.socket) -> tuple[Order, list[int]] | None:
    """The next order and its open files; None: whoever ordered is gone."""
    text, files, _, _ = socket.recv_fds(control, ORDER_BYTES, NUM_FILES)
    return (Order(**json.loads(text)), files) if text else None


def send_answer(control: socket.socket, answer: Ready | Born) -> None:
    """Raises OSError: whoever ordered is gone."""
    control.send(json.dumps(asdict(answer)).encode())


def receive_answer(control: socket.socket) -> dict[str, Any]:
    """The fields of an answer. Raises OSError: nobody is there, or not in time."""
    text = control.recv(ANSWER_BYTES)
    if not text:
        raise ConnectionResetError("the nursery has ended")
    return dict(json.loads(text))


def close_all(files: Sequence[int]) -> None:
    """Close these file descriptors."""
    for file in files:
        os.close(file)
