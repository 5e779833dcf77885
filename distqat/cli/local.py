"""`distqatd --role trainer --local`: the baseline, and its result as the last line of standard output."""

from __future__ import annotations

import dataclasses
import json

import typer

from distqat.config import Settings
from distqat.rpc.loop import run
from distqat.telemetry import LogFormat, set_up_logging


def run_local(settings: Settings, log_format: LogFormat) -> None:
    """Train in this process and print the result as JSON. Raises ConfigError, ModelError, DataError."""
    # torch, which the rest of the command line does without.
    from distqat.roles.local import train_locally

    set_up_logging(settings.daemon.log_level, log_format)
    typer.echo(json.dumps(dataclasses.asdict(run(train_locally(settings)))))
