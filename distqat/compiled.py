"""Loops over arrays as machine code: numba compiles them when their module is imported, and keeps what it has compiled.

Nothing is reordered and no product is fused with a sum: each operation is one of fp32, rounded by itself, whatever the
width of the vectors. Loops let other threads run. No index is checked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

FLOAT = numba.float32
FLOATS = numba.types.Array(numba.float32, 1, "C")
READ_FLOATS = numba.types.Array(numba.float32, 1, "C", readonly=True)
BYTES = numba.types.Array(numba.uint8, 1, "C")
READ_BYTES = numba.types.Array(numba.uint8, 1, "C", readonly=True)
"""What loops take; one that is read only may be written elsewhere. All lie at addresses that their elements want."""

log = logging.getLogger(__name__)


def compiled(*arguments: object) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Of a function that takes these types, in this order. It is ready for all calls when it is defined."""

    def compile(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        def ready(is_kept: bool) -> Callable[Arguments, Result]:
            made = numba.njit([arguments], nogil=True, error_model="numpy", boundscheck=False, cache=is_kept)(function)
            return cast("Callable[Arguments, Result]", made)

        try:
            return ready(is_kept=True)
        except Exception as error:
            # No place to keep code in, no room in it, or a torn file; what is wrong with the function comes up again.
            log.warning("machine code is not kept, so each start makes it anew (see NUMBA_CACHE_DIR): %s", error)
            return ready(is_kept=False)

    return compile
