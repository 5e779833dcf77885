"""hivemind as a peer: a virtual environment of its own, and processes in it that a bench can ask.

    async with open_peer("codecs") as peer:                  # runs bench/peers/codecs.py in that environment
        seconds = await peer.ask("encode", "UNIFORM_8BIT")   # calls a method there; arguments and results are JSON

The environment is made when it is first needed, which takes a minute or two and needs a package index. It is kept in
`.venv-hivemind` and made again when REQUIREMENTS change. hivemind wants an older numpy than ours, and is never a
dependency of distqat. What a script there looks like: `bench/peers/__init__.py`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from bench.machines import HERE, Machine

log = logging.getLogger(__name__)

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv-hivemind"
PYTHON = HOME / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
SCRIPTS = "bench.peers"
REQUIREMENTS = ("torch", "hivemind==1.1.12", "numpy<2.4", "bitsandbytes")
"""torch is that of constraints.txt, as ours."""

INSTALL_SECONDS = 900.0
"""For each of the two commands that make the environment."""

ASK_SECONDS = 120.0
"""For an answer, unless the bench says otherwise; the first waits for imports, which take up to a minute."""

LEAVE_SECONDS = 10.0
"""For a process to leave in good order; then it is killed."""

MAX_ANSWER_BYTES = 16 << 20
LAST_WORDS = 2000
"""Characters of what a process said, in an error."""


class PeerError(RuntimeError):
    """The environment cannot be made, or a process in it failed; the message ends with what was said last."""


class Peer:
    """A process in the peer's environment, as the bench speaks to it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, said: IO[bytes]) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._said = said  # Its standard error.

    async def ask(self, method: str, *arguments: Any, seconds: float = ASK_SECONDS) -> Any:
        """Call a method of the object there, and wait for what it returns. Raises PeerError if it raises anything."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                self._process.stdin.write(json.dumps([method, arguments]).encode() + b"\n")
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise PeerError(f"{self.name}: no answer to '{method}' within {seconds:g} s{_last(self._said)}") from None
        except OSError:
            line = b""
        if not line:
            # Its last words come after it has hung up.
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self._process.wait()
            raise PeerError(f"{self.name} died when it was asked for '{method}'{_last(self._said)}")
        return json.loads(line)


@asynccontextmanager
async def open_peer(script: str, *arguments: str, machine: Machine = HERE) -> AsyncIterator[Peer]:
    """A process on a machine that runs `bench/peers/SCRIPT.py ARGUMENTS`, with one thread for each operation.

    Raises PeerError. What it started is killed with it, if it left any.
    """
    python = await asyncio.to_thread(environment)
    there = () if machine.namespace is None else ("ip", "netns", "exec", machine.namespace)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *there, str(python), "-m", f"{SCRIPTS}.{script}", *arguments,
            cwd=ROOT, env={**os.environ, **threads, "HIVEMIND_LOGLEVEL": "ERROR"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
            limit=MAX_ANSWER_BYTES, start_new_session=True,
        )  # fmt: skip
        try:
            yield Peer(script, process, said)
        finally:
            await _end(process)


async def enter_if_possible(stack: AsyncExitStack, opening: AbstractAsyncContextManager[T]) -> T | None:
    """What the context gives; None, and a line in the log, where the peer cannot be had."""
    try:
        return await stack.enter_async_context(opening)
    except PeerError as error:
        log.warning("left out: %s", error)
        return None


async def _end(process: asyncio.subprocess.Process) -> None:
    """It leaves when nothing more is asked; the session that it began is ended in any case."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def environment() -> Path:
    """The interpreter of the peer's environment, which is made if it is not there. Blocks. Raises PeerError."""
    stamp = HOME / "made-from.txt"
    wanted = "\n".join([*REQUIREMENTS, CONSTRAINTS.read_text()])
    with _lock():
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(HOME, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(HOME))
            quietly = ("--quiet", "--disable-pip-version-check")
            _run(str(PYTHON), "-m", "pip", "install", *quietly, "--constraint", str(CONSTRAINTS), *REQUIREMENTS)
            stamp.write_text(wanted)
    return PYTHON


def _run(*command: str) -> None:
    with tempfile.TemporaryFile() as said:
        what = f"hivemind's environment cannot be made: `{' '.join(command)}`"
        try:
            subprocess.run(command, check=True, stdout=said, stderr=said, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            raise PeerError(f"{what} took more than {INSTALL_SECONDS:g} s{_last(said)}") from None
        except subprocess.CalledProcessError as error:
            raise PeerError(f"{what} ended with {error.returncode}{_last(said)}") from None


@contextmanager
def _lock() -> Iterator[None]:
    """One process at a time makes the environment; the others wait for it."""
    with HOME.with_name(f"{HOME.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last(said: IO[bytes]) -> str:
    said.seek(0)
    words = said.read().decode(errors="replace").strip()
    return f"; it said:\n{words[-LAST_WORDS:]}" if words else ""
