"""What the kernel says of connections."""

from __future__ import annotations

import socket

import pytest

from distqat.rpc import sockets
from distqat.rpc.pacing import Flow
from distqat.rpc.sockets import Sockets
from tests.support import run, until


def test_the_fields_of_tcp_info_are_where_the_kernel_puts_them() -> None:
    info = bytearray(232)
    info[120:128] = (5_000_000_000).to_bytes(8, "little")
    info[128:136] = (7).to_bytes(8, "little")
    info[144:148] = (9).to_bytes(4, "little")
    info[176:184] = (2_500_000).to_bytes(8, "little")
    assert sockets.read(bytes(info[:192])) == Flow(5_000_000_000, 7, 9, 2.5)
    assert sockets.read(bytes(info[:104])) is None


@pytest.mark.parametrize(
    ("host", "stays"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("host.example", False),
        ("", False),
    ],
)
def test_what_stays_on_this_host_is_known(host: str, stays: bool) -> None:
    assert sockets.is_loopback(host) is stays


def test_a_connection_is_found_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = Sockets()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as far:
        far.setblocking(False)
        far.connect_ex(server.getsockname())
        near, _ = server.accept()
        with near:
            assert looking.look() == {}  # It stays on this host.
            monkeypatch.setattr(sockets, "is_loopback", lambda host: False)
            assert looking.look() == {}  # And does so for ever.
            again = Sockets()
            before = set(again.look())
            assert len(before) >= 2
            far.sendall(bytes(1000))

            async def scenario() -> None:
                await until(lambda: any(flow.acked >= 1000 for flow in again.look().values()))
                await until(lambda: any(flow.received >= 1000 for flow in again.look().values()))
                # What the other end does not take stays in the kernel.
                sent = 0
                while sent < 64 << 20:
                    try:
                        sent += far.send(bytes(1 << 20))
                    except BlockingIOError:
                        break
                await until(lambda: any(flow.unsent > 0 for flow in again.look().values()))

            run(scenario())
    assert before - set(again.look()) == before


def test_sockets_that_are_no_connection_do_not_count() -> None:
    pair = socket.socketpair()
    with pair[0], pair[1], socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.create_server(("127.0.0.1", 0)):
        assert Sockets().look() == {}
