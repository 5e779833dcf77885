"""The largest size of a process is seen, and can be forgotten."""

from __future__ import annotations

import subprocess
import sys

SIZE = 64 << 20

GROWING = f"""
from bench.memory import peak_bytes, reset_peak, resident_bytes
reset_peak()
before = resident_bytes()
held = b"x" * {SIZE}
del held
print(peak_bytes() - before, resident_bytes() - before)
reset_peak()
print(peak_bytes() - before)
"""


def test_what_was_only_there_for_a_moment_is_in_the_peak() -> None:
    # In a process of its own: from a large one the system may take memory back meanwhile.
    words = [sys.executable, "-c", GROWING]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    peak, left, forgotten = (int(word) for word in done.stdout.split())
    assert peak > 0.9 * SIZE
    assert left < 0.5 * SIZE
    assert forgotten < 0.5 * SIZE
