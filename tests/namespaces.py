"""Processes on machines of their own: network namespaces with slow cables (`bench/machines.py`), on one host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.machines import Machine

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None,
    reason="network namespaces need root, ip and tc",
)


@contextmanager
def python_on(machine: Machine, module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A module of the tests as a process there, which is killed at the end."""
    inside = ("ip", "netns", "exec", machine.namespace) if machine.namespace is not None else ()
    command = [*inside, sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> Any:
    """The next line that it prints, which is JSON. Fails if it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args!r} has ended with {process.wait()}"
    return json.loads(line)


NOBODY = "02:00:00:00:00:01"
"""A hardware address that no machine has."""


def cut_one_way(source: Machine, target: Machine) -> None:
    """From now on nothing that the source sends gets to the target, and nobody is told."""
    _ip(source, "neighbour", "replace", target.host, "lladdr", NOBODY, "dev", source.interface, "nud", "permanent")


def heal_one_way(source: Machine, target: Machine) -> None:
    """It gets there again."""
    _ip(source, "neighbour", "delete", target.host, "dev", source.interface)


def _ip(machine: Machine, *arguments: str) -> None:
    assert machine.namespace is not None
    subprocess.run(("ip", "-n", machine.namespace, *arguments), check=True)
