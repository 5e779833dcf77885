"""Sound at another rate: a polyphase filter, a windowed sinc (Smith, Digital Audio Resampling; Kaiser's window)."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np

from distqat.data.sources.splits import Array

ZEROS = 32
"""Zero crossings of the sinc on each side."""

_BETA = 9.0  # Of the window: 90 dB down.
_ROLLOFF = 0.94  # Of the lower Nyquist frequency, where the filter is half way down.


def resample(sound: Array, rate: int, wanted: int) -> Array:
    """Float32 [n] at `rate` as float32 [ceil(n wanted / rate)] at `wanted`; the phase is linear, and not shifted."""
    if rate == wanted or not len(sound):
        return sound.astype(np.float32)
    divisor = gcd(rate, wanted)
    up, down = wanted // divisor, rate // divisor
    filters, reach = _filters(up, down)
    length = ceil(len(sound) * up / down)
    padded = np.pad(sound.astype(np.float32), (reach, reach + down))
    windows = np.lib.stride_tricks.sliding_window_view(padded, filters.shape[1])
    result = np.empty(length, np.float32)
    for first in range(min(up, length)):
        # Outputs first, first + up, ... lie `down` inputs apart, and all at the same place between two inputs.
        outputs = len(range(first, length, up))
        place, phase = divmod(first * down, up)
        result[first::up] = windows[place::down][:outputs] @ filters[phase]
    return result


@lru_cache(maxsize=8)
def _filters(up: int, down: int) -> tuple[Array, int]:
    """For each place between two inputs, in steps of 1 / up, the weights [2 reach + 1] of the inputs around it."""
    cutoff = _ROLLOFF * min(1.0, up / down)
    reach = ceil(ZEROS / cutoff)
    times = np.arange(-reach, reach + 1) - np.arange(up)[:, None] / up
    inside = np.clip(1 - (times / (reach + 1)) ** 2, 0, None)
    filters = cutoff * np.sinc(cutoff * times) * np.i0(_BETA * np.sqrt(inside)) / np.i0(_BETA)
    # Silence stays silence, and what does not change stays as loud.
    return (filters / filters.sum(1, keepdims=True)).astype(np.float32), reach
