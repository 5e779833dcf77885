"""Which address to tell other peers."""

from __future__ import annotations

import socket

from distqat.ids import Endpoint

ANYWHERE = ("0.0.0.0", "::", "")
"""Listen hosts that mean every interface; nobody can dial them."""


def announced(announce: str, listening: Endpoint, join: tuple[Endpoint, ...]) -> Endpoint:
    """The address that peers dial: as asked for, else the listen host, else the interface that leads to the swarm.

    A port 0 in `announce` stands for the port that is really listened on. Behind a NAT only `--announce` can know.
    """
    if announce:
        wanted = Endpoint.parse(announce)
        return Endpoint(wanted.host, wanted.port or listening.port)
    if listening.host not in ANYWHERE:
        return listening
    for target in (*join, Endpoint("192.0.2.1", 9)):
        host = _source_address(target)
        if host is not None:
            return Endpoint(host, listening.port)
    return Endpoint("127.0.0.1", listening.port)


def _source_address(target: Endpoint) -> str | None:
    """The local address from which a packet to the target would leave. Nothing is sent: UDP connect only routes."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return None
