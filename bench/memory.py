"""How large this process is and was, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
FORGET_PEAK = "5"
"""What makes Linux forget how large the process has been; see proc(5)."""


def resident_bytes() -> int:
    """In memory now."""
    return _read("VmRSS")


def peak_bytes() -> int:
    """In memory at most, since `reset_peak`."""
    return _read("VmHWM")


def reset_peak() -> None:
    """The peak is what is in memory now."""
    CLEAR.write_text(FORGET_PEAK)


def _read(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10
