"""Whatever vectors a processor has, a round ends with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden.one_round import CODECS

WIDTHS = ("DEFAULT", "AVX2", "AVX512")


def start(width: str, kept: Path | None, threads: int) -> subprocess.Popen[str]:
    """The program, with torch held to that width; numpy and compiled loops to what every processor has if there is a
    folder for the code of such loops."""
    environment = dict(os.environ, ATEN_CPU_CAPABILITY=width.lower(), OMP_NUM_THREADS=str(threads))
    if kept is not None:
        core: Any = np._core._multiarray_umath  # type: ignore[attr-defined]
        dispatched = [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]
        environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(dispatched)
        environment.update(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(kept))
    command = [sys.executable, "-m", "tests.golden.one_round", str(threads)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_rounds_end_with_the_same_bits(pytestconfig: pytest.Config) -> None:
    best = torch.backends.cpu.get_cpu_capability()
    widths = WIDTHS[: WIDTHS.index(best) + 1] if best in WIDTHS else (best,)
    assert pytestconfig.cache is not None
    plain = pytestconfig.cache.mkdir("plain-loops")
    with ExitStack() as stack:
        programs = [
            stack.enter_context(start(width, None if at else plain, 1 + at % 2)) for at, width in enumerate(widths)
        ]
        found = [json.loads(program.communicate(timeout=200)[0]) for program in programs]
    assert [one["torch"] for one in found] == list(widths)
    # They have not all been the same by mistake.
    if len(found) > 1:
        assert found[0]["numpy"] != found[1]["numpy"]
        assert found[0]["loops"] < found[1]["loops"]
    assert all(one["digests"] == found[0]["digests"] for one in found)
    assert set(found[0]["digests"]) == set(CODECS)
    assert len(set(found[0]["digests"].values())) == len(CODECS)
