"""What is said before the first message: the caller's protocol version, the time that it has left, and the lane; the
callee's word that it has accepted a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from distqat.errors import MessageError, ProtocolError
from distqat.rpc.transport import PROTOCOL_VERSION, Lane

VERSION_KEY = "distqat-protocol"

LEFT_KEY = "distqat-left"
"""Seconds left. gRPC's own time-out is rounded up, and a callee must never believe that it has more than its caller."""

LANE_KEY = "distqat-lane"
"""Of the call: what is sent back on a stream leaves on it, too."""

ACCEPTED = (("distqat-accepted", str(PROTOCOL_VERSION)),)
"""Said by whoever accepts a stream. gRPC makes up the empty metadata of a refusal, and may hand it over before the
refusal itself."""

_LANES = {lane.value: lane for lane in Lane}


@dataclass(frozen=True)
class Headers:
    """As they were received."""

    version: str = ""
    left: str = ""
    lane: Lane = Lane.CONTROL

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


def write(left: float | None, lane: Lane = Lane.CONTROL) -> tuple[tuple[str, str], ...]:
    """As gRPC metadata."""
    said = [(VERSION_KEY, str(PROTOCOL_VERSION))]
    if left is not None:
        said.append((LEFT_KEY, f"{left:.6f}"))
    if lane is not Lane.CONTROL:
        said.append((LANE_KEY, lane.value))
    return tuple(said)


def is_acceptance(metadata: Iterable[tuple[str, str | bytes]]) -> bool:
    """Whether the metadata that a stream begins with says that it is accepted."""
    return ACCEPTED[0] in tuple(metadata)


def read(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    """From gRPC metadata."""
    texts = {key: value for key, value in metadata if isinstance(value, str)}
    lane = _LANES.get(texts.get(LANE_KEY, ""), Lane.CONTROL)
    return Headers(texts.get(VERSION_KEY, ""), texts.get(LEFT_KEY, ""), lane)
