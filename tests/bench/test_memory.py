"""The largest size of this process is seen, and can be forgotten."""

from __future__ import annotations

import torch

from bench.memory import peak_bytes, reset_peak, resident_bytes

SIZE = 64 << 20


def test_what_was_only_there_for_a_moment_is_in_the_peak() -> None:
    reset_peak()
    before = resident_bytes()
    torch.ones(SIZE // 4)
    assert peak_bytes() - before > 0.9 * SIZE
    assert resident_bytes() - before < 0.5 * SIZE
    reset_peak()
    assert peak_bytes() - before < 0.5 * SIZE
