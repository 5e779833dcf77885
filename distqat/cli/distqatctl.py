"""`distqatctl`: looks into a swarm, changes it, and runs a whole one on this machine.

Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from distqat.roles.remote import Remote

T = TypeVar("T")

UNHEALTHY = 1
FAILED = 2

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look into a distqat swarm, and change it.")
role_app = typer.Typer(no_args_is_help=True, help="Take or drop roles of a running daemon.")
app.add_typer(role_app, name="role")

Peer = Annotated[
    str,
    typer.Option("--peer", "-p", metavar="HOST:PORT", help="Daemon to ask; default: the first one on this machine."),
]
StateDir = Annotated[
    Path, typer.Option("--state-dir", help="State folder in which daemons on this machine are looked for.")
]
DEFAULT_STATE_DIR = Path("~/.local/state/distqat")


@app.command()
def status(
    peer: Peer = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it live until interrupted.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Run, pipelines, experts, rounds, and why anything waits. Exit code 0: healthy, 1: not, 2: nobody answers."""
    from distqat.cli import show

    if watch:
        _ask(peer, state_dir, show.watch)
        return
    swarm = _ask(peer, state_dir, lambda remote: remote.swarm())
    if as_json:
        typer.echo(show.as_json(swarm))
    else:
        show.print_swarm(swarm)
    raise typer.Exit(0 if show.is_healthy(swarm) else UNHEALTHY)


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(help="Config file to resolve; none: the running daemon's run.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
    ] = None,
    template: Annotated[bool, typer.Option("--template", help="Print every setting with its meaning.")] = False,
    peer: Peer = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Print the resolved config: of a file with its overrides, or of the run that a daemon works for."""
    import yaml

    from distqat.config import load
    from distqat.config import template as settings_template

    if template:
        typer.echo(settings_template(), nl=False)
        return
    if file is not None or override:
        tree = _or_exit(lambda: load(file, override or [])).model_dump(mode="json")
    else:
        tree = _ask(peer, state_dir, lambda remote: remote.config()).model_dump(mode="json")
    typer.echo(yaml.safe_dump(tree, sort_keys=False), nl=False)


@app.command()
def trace(
    step: Annotated[str, typer.Argument(metavar="STEP", help="A step, two with a dash between (12-14), or 'last'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("trace.json"),
    pipeline: Annotated[str, typer.Option("--pipeline", help="Pipeline; default: the only one.")] = "",
    peer: Peer = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Write a Perfetto trace of a step over all peers of a pipeline. Exit code 1: some peers are not in it."""
    from distqat.cli.trace import Steps, collect, report

    steps = _or_exit(lambda: Steps.parse(step))
    found = _ask(peer, state_dir, lambda remote: collect(remote, steps, pipeline))
    _or_exit(lambda: report(found, out))
    raise typer.Exit(UNHEALTHY if found.silent else 0)


@app.command()
def events(
    since: Annotated[
        str, typer.Option("--since", help="How long ago (10m), a moment (2026-11-23T14:00), or how many (50).")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what comes, until interrupted.")] = False,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only this kind; may be repeated.")] = None,
    about: Annotated[str, typer.Option("--about", metavar="PEER", help="Only those of or about this peer.")] = "",
    file: Annotated[
        list[Path] | None, typer.Option("--file", help="Read files or folders of dead daemons; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    peer: Peer = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """What happened at all daemons of the swarm, by their wall clocks. Exit code 1: some did not answer."""
    import time

    from distqat.cli import events as told

    wanted = _or_exit(lambda: told.Wanted.parse(since, kind or (), about, time.time()))
    if file:
        told.show(wanted.choose(_or_exit(lambda: told.from_files(file))), as_json)
    elif follow:
        _ask(peer, state_dir, lambda remote: told.follow(remote, wanted, as_json))
    else:
        found, silent = _ask(peer, state_dir, told.collect)
        told.show(wanted.choose(found), as_json)
        told.tell_silent(silent)
        raise typer.Exit(UNHEALTHY if silent else 0)


@app.command()
def why(
    whom: Annotated[str, typer.Argument(metavar="PEER", help="Beginning of a peer's id, or its address.")],
    peer: Peer = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """What a peer does and waits for, and what others say of it. Exit code 0: it gets on, 1: not, 2: it is unknown."""
    from distqat.cli.why import inquire, report

    found = _ask(peer, state_dir, lambda remote: inquire(remote, whom))
    report(found)
    raise typer.Exit(0 if found.is_healthy else UNHEALTHY)


@role_app.command("add")
def role_add(
    role: Annotated[str, typer.Argument(help="monitor, client, trainer or expert.")],
    stage: Annotated[
        int | None, typer.Option("--stage", help="Stage of an expert; default: whichever is needed.")
    ] = None,
    peer: Peer = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Let a running daemon take a role."""
    held = _ask(peer, state_dir, lambda remote: remote.add_role(role, stage), seconds=90)
    typer.echo(f"roles: {', '.join(held) or 'none'}")


@role_app.command("drop")
def role_drop(
    role: Annotated[str, typer.Argument(help="monitor, client, trainer or expert.")],
    peer: Peer = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Let a running daemon finish and give back a role."""
    held = _ask(peer, state_dir, lambda remote: remote.drop_role(role), seconds=90)
    typer.echo(f"roles: {', '.join(held) or 'none'}")


@app.command()
def drain(peer: Peer = "", state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Let a daemon finish its microbatch, hand everything back and leave."""
    timeout = _ask(peer, state_dir, lambda remote: remote.drain())
    typer.echo(f"draining; it leaves within {timeout:.0f} s")


@app.command()
def export(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT_DIR...", help="Folders below which checkpoints of all stages lie."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("export"),
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Config file of the run; default: what the checkpoints say.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, as the run did.")
    ] = None,
    graph: Annotated[bool, typer.Option(help="Write a torch.export graph as well.")] = True,
) -> None:
    """Write the whole model of a run from its checkpoints: safetensors, with integer weights where it is quantised."""
    from distqat.cli.export import run_export
    from distqat.config import load

    def work() -> None:
        chosen = load(config, override or []).run_config() if config is not None or override else None
        run_export(checkpoints, out, chosen, graph)

    _or_exit(work)


@app.command()
def sandbox(
    config: Annotated[Path | None, typer.Argument(help="Config file; default: the embedded digits run.")] = None,
    pipelines: Annotated[int, typer.Option(min=1, max=16, help="Pipelines; each has one expert per stage.")] = 2,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="Give up after so many minutes; with --faults: spread them over so many.")
    ] = 15.0,
    baseline: Annotated[bool, typer.Option(help="Train the same model in one process too, and compare.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scorecard as one JSON object.")] = False,
    spares: Annotated[int, typer.Option(min=0, max=16, help="Further experts, without a stage.")] = 0,
    faults: Annotated[
        str, typer.Option("--faults", metavar="KIND=N,...", help="Hurt it meanwhile: kill, stop, cut, kill-head.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the times, victims and order of the faults.")] = 7,
    keep: Annotated[float, typer.Option(help="Share of the fault-free throughput that faults must leave.")] = 0.5,
    within: Annotated[float, typer.Option(help="Seconds in which everything must train again after a fault.")] = 60.0,
) -> None:
    """Train on this machine through real daemons, then in one process, and print a scorecard. Exit code 0: passed."""
    from distqat.cli.sandbox import Plan, run_sandbox
    from distqat.config import load

    settings = _or_exit(lambda: load(config, override or []))
    plan = Plan(settings, config, tuple(override or ()), pipelines, minutes * 60, baseline, as_json, spares)
    if faults:
        from distqat.cli.chaos.card import Limits
        from distqat.cli.chaos.run import Weather, run_chaos
        from distqat.cli.chaos.schedule import parse_faults

        wanted = _or_exit(lambda: parse_faults(faults))
        passed = _or_exit(lambda: run_chaos(plan, Weather(wanted, seed, Limits(keep, within))))
    else:
        passed = _or_exit(lambda: run_sandbox(plan))
    raise typer.Exit(0 if passed else UNHEALTHY)


def _or_exit(work: Callable[[], T]) -> T:
    """Run it; an error of ours becomes one line on standard error and exit code 2."""
    from distqat.errors import DistqatError

    try:
        return work()
    except DistqatError as error:
        typer.echo(f"distqatctl: {error.reason}", err=True)
        raise typer.Exit(FAILED) from None


def _ask(peer: str, state_dir: Path, question: Callable[[Remote], Awaitable[T]], seconds: float = 10.0) -> T:
    """Ask the daemon at `peer`, or the first one that runs on this machine."""
    from distqat.cli.asking import ask

    return _or_exit(lambda: ask(peer, state_dir, question, seconds))


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
