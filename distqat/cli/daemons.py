"""Daemons as child processes of a command: started with a folder of their own, stopped in good order."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distqat.cli.nursery.process import Birth, Executing, Process, Starter
from distqat.ids import Endpoint


@dataclass(frozen=True)
class Daemon:
    """A daemon that was started here."""

    name: str
    process: Process
    output: Path


def start_daemon(
    name: str,
    folder: Path,
    arguments: Sequence[str],
    log_folder_name: str = "",
    is_again: bool = False,
    starter: Starter | None = None,
) -> Daemon:
    """Start `distqatd` on a free port of the loopback interface, one thread for each torch operation; without a
    starter the command is run.

    Its key lies in `folder/states/<name>`, its logs in `folder`, and what it prints in `folder/<name>.out`, behind
    what it printed before if it is started again. Arguments may name another address to listen on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log_dir = folder.parent if folder.name == log_folder_name else folder
    local = {
        "daemon.state_dir": str(folder / "states" / name),
        "daemon.log_dir": str(log_dir),
        "daemon.threads": "1",
    }
    chosen = ["--listen", "127.0.0.1:0", *arguments]
    chosen += [part for key, value in local.items() for part in ("--set", f"{key}={value}")]
    output = folder / f"{name}.out"
    with output.open("ab" if is_again else "wb") as file:
        process = (starter or Executing()).start(Birth(chosen, file.fileno(), file.fileno()))
    return Daemon(name, process, output)


def address_of(daemon: Daemon) -> Endpoint | None:
    """What it announces, from the note that it leaves for `distqatctl`; None until it listens."""
    for path in (daemon.output.parent / "states" / daemon.name).glob("peer-*/daemon.json"):
        try:
            note = json.loads(path.read_text())
            if note["pid"] == daemon.process.pid:
                return Endpoint.parse(note["endpoint"])
        except (OSError, ValueError, KeyError):
            continue  # It is being written.
    return None


async def stop_daemons(daemons: Sequence[Daemon], seconds: float) -> None:
    """Let all of them drain, and kill those that do not leave in time."""
    running = [daemon.process for daemon in daemons if daemon.process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    try:
        with suppress(TimeoutError):  # Those who have not left by then are killed.
            async with asyncio.timeout(seconds):
                for process in running:
                    await asyncio.to_thread(process.wait)
    finally:
        # Also if somebody does not want to wait: they are in sessions of their own, and no Ctrl-C reaches them.
        for process in running:
            process.kill()
    for process in running:
        await asyncio.to_thread(process.wait)
