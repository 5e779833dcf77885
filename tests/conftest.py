"""For all tests: small machines, one thread each."""

from __future__ import annotations

import os

# Before torch or numpy is imported anywhere: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
