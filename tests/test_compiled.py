"""Compiled loops: kept, or compiled again where nothing can be kept; rounded as numpy rounds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distqat.compiled import FLOAT, FLOATS, READ_FLOATS, compiled

SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from loop import scale
values = np.arange(5, dtype=np.float32)
scale(values, 2.0)
print(values.tolist(), sum(scale.stats.cache_hits.values()))
"""

LOOP = """
from distqat.compiled import FLOAT, FLOATS, compiled

@compiled(FLOATS, FLOAT)
def scale(values, factor):
    for at in range(len(values)):
        values[at] *= factor
"""


@compiled(READ_FLOATS, READ_FLOATS, FLOATS, FLOAT)
def _step(values: np.ndarray, others: np.ndarray, out: np.ndarray, factor: float) -> None:
    for at in range(len(values)):
        out[at] = values[at] * factor + others[at]


def run(folder: Path, kept: Path) -> str:
    (folder / "loop.py").write_text(LOOP)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(kept)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_each_operation_is_rounded_by_itself() -> None:
    values, others = (np.random.default_rng(seed).standard_normal(1003, dtype=np.float32) for seed in (1, 2))
    values.flags.writeable = False
    out = np.empty_like(others)
    _step(values, others, out, 0.7)
    assert np.array_equal(out, values * np.float32(0.7) + others)


def test_code_is_kept_for_the_next_process(tmp_path: Path) -> None:
    assert run(tmp_path, tmp_path / "kept") == "[0.0, 2.0, 4.0, 6.0, 8.0] 0"
    assert list((tmp_path / "kept").rglob("*.nbc"))
    assert run(tmp_path, tmp_path / "kept") == "[0.0, 2.0, 4.0, 6.0, 8.0] 1"


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_torn_file_is_not_used(tmp_path: Path, suffix: str) -> None:
    run(tmp_path, tmp_path / "kept")
    (file,) = (tmp_path / "kept").rglob(f"*.{suffix}")
    file.write_bytes(file.read_bytes()[:10])
    assert run(tmp_path, tmp_path / "kept") == "[0.0, 2.0, 4.0, 6.0, 8.0] 0"


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    no_folder = tmp_path / "file"
    no_folder.write_text("")
    (folder / "__pycache__").write_text("")
    environ = {"HOME": str(no_folder), "XDG_CACHE_HOME": str(no_folder / "cache"), "NUMBA_CACHE_DIR": ""}
    (folder / "loop.py").write_text(LOOP)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[0.0, 2.0, 4.0, 6.0, 8.0] 0"), done.stderr
