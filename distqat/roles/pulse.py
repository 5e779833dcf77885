"""Whether the device of an expert gets on with its work. The daemon's lease hangs on it."""

from __future__ import annotations

from distqat.model.device import Device
from distqat.roles.leases import WORK_FACTOR

FIRST_SECONDS = 30.0
"""The first unit of work may take so long: kernels are loaded, and nothing is known of its length yet."""


def pulse(device: Device, lease: float) -> tuple[float, float]:
    """For how long one unit of work has kept the device busy, if that is far longer than any before, else 0; and the
    seconds of the longest lately."""
    held = device.statistics()
    busy = held.running_seconds or 0.0
    longest = max(lease, WORK_FACTOR * held.longest_seconds if held.jobs else FIRST_SECONDS)
    return (busy if busy > longest else 0.0), held.longest_seconds
