"""`python -m bench [NAME] [--quick]`: measures, and prints one JSON object for each case."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path

from bench.case import Bench

NAMES = (
    "start",
    "wire",
    "stream",
    "transfer",
    "pipeline",
    "links",
    "curve",
    "newcomer",
    "failover",
    "overhead",
    "round",
    "overlap",
    "diloco",
    "ramp",
    "quant",
    "data",
    "boundary",
)

KEEPING = ("diloco", "ramp")
"""Those that take so long that a file keeps what they have found."""


def main() -> None:
    """Run the benches that were named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure distqat beside its peers.")
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(NAMES)}; default: all of them")
    parser.add_argument("--quick", action="store_true", help="fewer runs and cases")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="of diloco and ramp: what they find is kept there, not made again"
    )
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(NAMES))
    if unknown:
        parser.error(f"there is no bench '{unknown[0]}'; there are: {', '.join(NAMES)}")
    # One thread for each process of a bench, as on a machine that hosts several peers.
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.basicConfig(level=logging.WARNING)
    # As with Ctrl-C, which a background job ignores, so that processes and network namespaces are cleaned up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))

    from distqat.rpc.loop import run

    for name in chosen.names or NAMES:
        bench = importlib.import_module(f"bench.{name}").bench
        run(_show(partial(bench, keep=chosen.keep) if name in KEEPING else bench, chosen.quick))


async def _show(bench: Bench, quick: bool) -> None:
    async for line in bench(quick):
        sys.stdout.write(line.to_json() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
