"""Run as a process: a command that starts a daemon, says who its nursery and its daemon are, and waits to be killed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from distqat.cli.daemons import start_daemon
from distqat.cli.nursery.nursery import Nursery, open_nursery


def main() -> None:
    """The argument is the daemon's folder."""
    with open_nursery() as starter:
        assert isinstance(starter, Nursery)
        daemon = start_daemon("orphan", Path(sys.argv[1]), ["--role", "monitor"], starter=starter)
        print(json.dumps([starter.mother.pid, daemon.process.pid]), flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
