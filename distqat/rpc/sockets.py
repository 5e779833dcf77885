"""What the kernel knows of this process's connections to other hosts: `tcp_info` of Linux; elsewhere nothing is known.

Only the kernel sees a link as it is: what gRPC takes may lie in buffers for seconds, and a busy process is late.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

from distqat.rpc.pacing import Flow

_TCP_INFO = getattr(socket, "TCP_INFO", None)

_FIELDS = struct.Struct("=120x QQ 8x I 28x Q 8x")
"""Of `struct tcp_info`: bytes_acked, bytes_received, notsent_bytes and, in microseconds, rwnd_limited (Linux 4.10)."""

_DESCRIPTORS = "/proc/self/fd"
_SOCKET = "socket:["
_MICROSECONDS = 1e-6


class Sockets:
    """Finds and reads them. A look takes 20 microseconds for each that counts, and 3 for each that does not."""

    def __init__(self) -> None:
        self._others: set[int] = set()  # Numbers of sockets that were seen to be something else.

    def look(self) -> dict[int, Flow]:
        """Those that are open, by a number that no two of them share."""
        flows, others = {}, set()
        for descriptor, number in _sockets():
            if number in self._others:
                others.add(number)
                continue
            try:
                flows[number] = _flow(descriptor)
            except _OtherError:
                others.add(number)
            except OSError:
                pass  # Closed meanwhile, or not connected yet.
        self._others = others
        return flows


class _OtherError(Exception):
    """Not a connection to another host, nor will it be."""


def is_loopback(host: str) -> bool:
    """Whether what is sent to that address leaves this host; a name may."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _sockets() -> Iterator[tuple[int, int]]:
    """Descriptor and number of every socket of this process."""
    try:
        names = os.listdir(_DESCRIPTORS)
    except FileNotFoundError:
        return
    for name in names:
        try:
            target = os.readlink(f"{_DESCRIPTORS}/{name}")
        except OSError:
            continue  # Closed meanwhile.
        if target.startswith(_SOCKET):
            yield int(name), int(target[len(_SOCKET) : -1])


def _flow(descriptor: int) -> Flow:
    """Raises OSError for what is not connected, and _OtherError."""
    # A descriptor of our own, which nobody closes under our hands.
    with socket.socket(fileno=os.dup(descriptor)) as end:
        if end.family not in (socket.AF_INET, socket.AF_INET6) or end.type != socket.SOCK_STREAM:
            raise _OtherError
        flow = None if is_loopback(end.getpeername()[0]) else read(_info(end))
    if flow is None:
        raise _OtherError
    return flow


def _info(end: socket.socket) -> bytes:
    return end.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _FIELDS.size) if _TCP_INFO is not None else b""


def read(info: bytes) -> Flow | None:
    """From the bytes of `struct tcp_info`; None from a kernel that says less."""
    if len(info) < _FIELDS.size:
        return None
    acked, received, unsent, starved = _FIELDS.unpack(info)
    return Flow(acked, received, unsent, starved * _MICROSECONDS)
