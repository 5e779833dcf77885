"""How fast the hosts of the network in memory send and receive on streams; unlimited unless it is said. Pure."""

from __future__ import annotations


class Cable:
    """One direction of a host's link: one message after the other."""

    def __init__(self, rate: float = 0.0) -> None:
        self.rate = rate  # Bytes per second; 0: unlimited.
        self._free = 0.0  # When the last byte has passed.

    def passes(self, size: int, first: float, last: float) -> float:
        """When the last of so many bytes has passed; the first is there at `first`, the last at `last`."""
        if not self.rate:
            return last
        self._free = max(last, max(self._free, first) + size / self.rate)
        return self._free


class Cables:
    """Of all hosts."""

    def __init__(self) -> None:
        self._up: dict[str, Cable] = {}
        self._down: dict[str, Cable] = {}

    def limit(self, host: str, up: float, down: float) -> None:
        """Bytes per second of all streams of a host together, each way; 0: unlimited."""
        self._up[host], self._down[host] = Cable(up), Cable(down)

    def up(self, host: str) -> float:
        """Bytes per second that the host may send; 0: unlimited."""
        return self._up[host].rate if host in self._up else 0.0

    def down(self, host: str) -> float:
        """Bytes per second that the host may receive; 0: unlimited."""
        return self._down[host].rate if host in self._down else 0.0

    def seconds(self, source: str, target: str, size: int, now: float) -> float:
        """Until the last byte of a message that is sent now is there; what is under way already goes first."""
        left = self._up[source].passes(size, now, now) if source in self._up else now
        return (self._down[target].passes(size, now, left) if target in self._down else left) - now
