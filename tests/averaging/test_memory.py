"""What a round needs beside the committed state and the local values."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FRAMES = 0.4
"""Vectors of the size of this test: chunks under way, and scratch memory; 9 MiB."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured in /proc")
@pytest.mark.parametrize(
    ("codec", "most"),
    [
        # The average, the next anchor and the next momentum; what is sent is worked out chunk by chunk.
        ("none", 3.0),
        # The contribution and the average, encoded; the next anchor and the next momentum.
        ("int8", 2.0 + 2 * 0.254),
        # The same, the residual, and what was lost of the own slice, which is half of all.
        ("int2", 2.0 + 2 * 0.079 + 1.5),
    ],
)
def test_a_round_takes_at_most_three_vectors_and_one_more_with_feedback(codec: str, most: float) -> None:
    command = [sys.executable, "-m", "tests.averaging.peak", codec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    vectors = json.loads(done.stdout)
    assert most - 0.4 <= vectors <= most + FRAMES
