"""Message bytes by flow, as they enter and leave a transport; what gRPC and TCP add is not counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from distqat.rpc.transport import Bytes


class Meter:
    """Counts for one transport."""

    def __init__(self) -> None:
        self._sent: Counter[str] = Counter()  # Bytes by flow.
        self._received: Counter[str] = Counter()  # Bytes by flow.

    def sent(self, flow: str, data: bytes) -> None:
        """A message left."""
        self._sent[flow] += len(data)

    def received(self, flow: str, data: bytes) -> None:
        """A message came in."""
        self._received[flow] += len(data)

    def snapshot(self) -> Mapping[str, Bytes]:
        """So far, by flow."""
        flows = sorted(self._sent.keys() | self._received.keys())
        return {flow: Bytes(self._sent[flow], self._received[flow]) for flow in flows}
