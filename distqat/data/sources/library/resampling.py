"""Sound at another rate: a polyphase filter, a windowed sinc (Smith, Digital Audio Resampling; Kaiser's window)."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np

from distqat.data.sources.splits import Array

ZEROS = 32
"""Zero crossings of the sinc on each side."""

_BETA = 9.0  # Of the window: 90 dB down.
_WEIGHTS = 1 << 20  # In memory at once. Between odd rates there are more.
_ROLLOFF = 0.94  # Of the lower Nyquist frequency, where the filter is half way down.


def resample(sound: Array, rate: int, wanted: int) -> Array:
    """Float32 [n] at `rate` as float32 [ceil(n wanted / rate)] at `wanted`; the phase is linear, and not shifted."""
    if rate == wanted or not len(sound):
        return sound.astype(np.float32)
    divisor = gcd(rate, wanted)
    up, down = wanted // divisor, rate // divisor
    reach, some = _reach(up, down), _some(up, down)
    length = ceil(len(sound) * up / down)
    padded = np.pad(sound.astype(np.float32), (reach, reach + down))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    result = np.empty(length, np.float32)
    for first in range(min(up, length)):
        # Outputs first, first + up, ... lie `down` inputs apart, and all at the same place between two inputs.
        outputs = len(range(first, length, up))
        place = first * down // up
        filters = _filters(up, down, first // some)
        result[first::up] = windows[place::down][:outputs] @ filters[first % some]
    return result


def _cutoff(up: int, down: int) -> float:
    return _ROLLOFF * min(1.0, up / down)


def _reach(up: int, down: int) -> int:
    """Inputs on each side that an output is made of."""
    return ceil(ZEROS / _cutoff(up, down))


def _some(up: int, down: int) -> int:
    """Outputs whose weights are worked out together."""
    return min(up, max(1, _WEIGHTS // (2 * _reach(up, down) + 1)))


@lru_cache(maxsize=8)
def _filters(up: int, down: int, block: int) -> Array:
    """For each of some outputs in turn, the weights [2 reach + 1] of the inputs around its place between two inputs."""
    cutoff, reach, some = _cutoff(up, down), _reach(up, down), _some(up, down)
    outputs = np.arange(block * some, min(up, (block + 1) * some))
    times = np.arange(-reach, reach + 1) - (outputs * down % up)[:, None] / up
    inside = np.clip(1 - (times / (reach + 1)) ** 2, 0, None)
    filters = cutoff * np.sinc(cutoff * times) * np.i0(_BETA * np.sqrt(inside)) / np.i0(_BETA)
    # Silence stays silence, and what does not change stays as loud.
    weights: Array = (filters / filters.sum(1, keepdims=True)).astype(np.float32)
    return weights
