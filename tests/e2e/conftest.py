"""What the tests with real processes share, because it takes long to read torch."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.family import open_maker


@pytest.fixture(scope="session")
def maker() -> Iterator[subprocess.Popen[str]]:
    """The process that makes siblings."""
    with open_maker() as maker:
        yield maker
