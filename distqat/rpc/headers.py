"""What every call says before its message: the protocol version of the caller, and the time that it has left."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from distqat.errors import MessageError, ProtocolError
from distqat.rpc.transport import PROTOCOL_VERSION

VERSION_KEY = "distqat-protocol"

LEFT_KEY = "distqat-left"
"""Seconds left. gRPC's own time-out is rounded up, and a callee must never believe that it has more than its caller."""


@dataclass(frozen=True)
class Headers:
    """As they were received."""

    version: str = ""
    left: str = ""

    def check_version(self, here: str) -> None:
        """Raise ProtocolError unless the caller speaks our version; `here` is our address."""
        if self.version != str(PROTOCOL_VERSION):
            spoken = f"version {self.version}" if self.version else "no version"
            raise ProtocolError(
                f"the caller speaks {spoken} of the distqat protocol, {here} speaks version {PROTOCOL_VERSION}"
            )

    def seconds_left(self, other: float | None) -> float | None:
        """The sooner of the caller's own word and what gRPC says; None without a deadline. Raises MessageError."""
        if not self.left:
            return other
        try:
            own = float(self.left)
        except ValueError:
            own = math.nan
        if not math.isfinite(own):
            raise MessageError(f"'{self.left[:40]}' is not a number of seconds")
        return max(0.0, own if other is None else min(own, other))


def write(left: float | None) -> tuple[tuple[str, str], ...]:
    """As gRPC metadata."""
    version = (VERSION_KEY, str(PROTOCOL_VERSION))
    return (version,) if left is None else (version, (LEFT_KEY, f"{left:.6f}"))


def read(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    """From gRPC metadata."""
    texts = {key: value for key, value in metadata if isinstance(value, str)}
    return Headers(texts.get(VERSION_KEY, ""), texts.get(LEFT_KEY, ""))
