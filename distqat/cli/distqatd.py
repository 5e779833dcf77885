"""`distqatd`: the daemon."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from distqat.errors import DistqatError

app = typer.Typer(add_completion=False)

EXIT_CONFIG = 64
EXIT_CANNOT_LISTEN = 65
EXIT_IDENTITY = 66
EXIT_VERSION = 67
EXIT_NOTHING_TO_RESUME = 68


class LogFormat(StrEnum):
    """How log lines look."""

    rich = "rich"
    json = "json"


@app.command()
def daemon(
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="monitor, client, trainer, expert, mirror; may be repeated. None: a spare."),
    ] = None,
    join: Annotated[
        list[str] | None, typer.Option("--join", metavar="HOST:PORT", help="A peer of the swarm; may be repeated.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Config file; a joiner needs none.")] = None,
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Address to listen on.")] = "",
    announce: Annotated[str, typer.Option("--announce", metavar="HOST:PORT", help="Address that peers dial.")] = "",
    stage: Annotated[int | None, typer.Option("--stage", help="Stage of this expert; default: as needed.")] = None,
    device: Annotated[str, typer.Option("--device", help="Device of the expert: cpu, cuda, cuda:1.")] = "",
    local: Annotated[
        bool, typer.Option("--local", help="With --role trainer: train the whole model in this process, and exit.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from checkpoints; never begin anew, and give up if there are none.")
    ] = False,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="For people or for machines.")] = LogFormat.rich,
) -> None:
    """Run a peer of a distqat swarm until SIGTERM, which drains it.

    Exit codes: 0 left in good order, 64 a setting is wrong, 65 cannot listen, 66 the key cannot be used or is used by
    another daemon too, 67 the swarm speaks another version, 68 with --resume: there is nothing to go on with.
    """
    from distqat.config import load

    codes = _exit_codes()
    flags = {"daemon.listen": listen, "daemon.announce": announce, "daemon.device": device}
    # As JSON, so that an IPv6 address is no list.
    overrides = [*(override or []), *(f"{key}={json.dumps(value)}" for key, value in flags.items() if value)]
    try:
        settings = load(config, overrides)
        roles = tuple(role or ())
        if local:
            _check_local(roles)
            from distqat.cli.local import run_local

            run_local(settings, log_format.value)
        else:
            from distqat.cli.serving import Order, serve

            brings_run = config is not None or "client" in roles
            serve(Order(settings, roles, tuple(join or ()), stage, brings_run, log_format.value, resume))
    except tuple(codes) as error:
        typer.echo(f"distqatd: {error.reason}", err=True)
        raise typer.Exit(codes[type(error)]) from None


def _exit_codes() -> dict[type[DistqatError], int]:
    from distqat import errors

    return {
        errors.ConfigError: EXIT_CONFIG,
        errors.ModelError: EXIT_CONFIG,
        errors.DataError: EXIT_CONFIG,
        errors.CannotListenError: EXIT_CANNOT_LISTEN,
        errors.IdentityError: EXIT_IDENTITY,
        errors.ProtocolError: EXIT_VERSION,
        errors.NothingToResumeError: EXIT_NOTHING_TO_RESUME,
    }


def _check_local(roles: tuple[str, ...]) -> None:
    from distqat.errors import ConfigError

    if roles != ("trainer",):
        raise ConfigError("--local goes with --role trainer and no other role")


def main() -> None:
    """Entry point."""
    app(prog_name="distqatd")


if __name__ == "__main__":
    main()
