"""A swarm's status for people and for programs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distqat.ids import short
from distqat.roles.remote import Remote
from distqat.roles.status import ExpertStatus, LinkStatus, PeerStatus, PipelineStatus, Receipt, RunStatus, SwarmStatus
from distqat.times import DOWN, UP

WATCH_SECONDS = 1.0
BARS = "▁▂▃▄▅▆▇█"


def is_healthy(swarm: SwarmStatus) -> bool:
    """Every peer answers, no role has failed, a client plans the run, and every pipeline trains or has finished."""
    lines, run = swarm.pipelines(), swarm.run()
    return (
        run is not None
        and run.budget > 0
        and all(peer.reachable for peer in swarm.peers)
        and not any(role.phase == "failed" for peer in swarm.peers for role in peer.roles)
        and bool(lines)
        and all(line.phase in ("training", "finished") for line in lines)
    )


def as_json(swarm: SwarmStatus) -> str:
    """One JSON object: `healthy`, `run`, `pipelines`, `peers`; numbers that are not there are null."""
    run = swarm.run()
    tree = {
        "healthy": is_healthy(swarm),
        "run": dataclasses.asdict(run) if run is not None else None,
        "pipelines": [dataclasses.asdict(line) for line in swarm.pipelines()],
        "peers": [dataclasses.asdict(peer) for peer in swarm.peers],
    }
    return json.dumps(_without_nan(tree), indent=2)


def print_swarm(swarm: SwarmStatus) -> None:
    """The status as tables."""
    Console().print(render(swarm))


async def watch(remote: Remote) -> None:
    """Show the status live until interrupted."""
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            live.update(render(await remote.swarm()), refresh=True)
            await asyncio.sleep(WATCH_SECONDS)


def render(swarm: SwarmStatus) -> RenderableType:
    """Run, pipelines, peers and the last rounds."""
    run = swarm.run()
    return Group(
        _run_line(swarm, run),
        _pipelines(swarm.pipelines()),
        _peers(swarm),
        _times(swarm),
        _rounds(swarm),
        _checkpoints(swarm),
        _losses(run),
    )


def sparkline(values: tuple[float, ...], width: int = 32) -> str:
    """The values as a row of bars, the newest to the right; empty without values."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in shown)


def size(number: float) -> str:
    """Bytes for people: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _run_line(swarm: SwarmStatus, run: RunStatus | None) -> Text:
    ids = {str(peer.run) for peer in swarm.peers if peer.run is not None}
    health = Text("healthy", "green") if is_healthy(swarm) else Text("not healthy", "red")
    line = Text.assemble(("run ", "dim"), ", ".join(sorted(ids)) or "none known", "  ", health)
    if run is None:
        return line.append("\nwaiting: no client in this swarm", "yellow")
    share = run.committed / run.budget if run.budget else 0.0
    line.append(f"  {run.committed}/{run.budget} samples ({share:.0%}), {len(run.stages)} stages")
    if run.skipped:
        line.append(f", {run.skipped} samples skipped", "yellow")
    client = next((role for peer in swarm.peers for role in peer.roles if role.run is not None), None)
    return line.append(f"\n{client.phase}: {client.reason}" if client is not None else "", "dim")


def _pipelines(lines: list[PipelineStatus]) -> Table:
    table = _table(
        "pipeline", "phase", "route", "step", "microbatches", "loss", "", "samples/s", "evaluation", "reason"
    )
    for line in lines:
        route = " > ".join(short(seat.peer) for seat in line.route)
        loss, evaluation = _number(line.loss, ".4f"), _number(line.evaluation, ".4f")
        speed, graph, work = f"{line.samples_per_second:.0f}", sparkline(line.losses), _step_size(line)
        facts = (str(line.step), work, loss, graph, speed, evaluation, line.reason)
        table.add_row(line.pipeline, line.phase, route, *facts)
    return table


def _step_size(line: PipelineStatus) -> str:
    """Microbatches of a step, and how long each takes: 5 x 12.3 ms."""
    pace = f" x {line.microbatch_seconds * 1000:.1f} ms" if line.microbatch_seconds else ""
    return f"{line.microbatches}{pace}" if line.microbatches else ""


def _peers(swarm: SwarmStatus) -> Table:
    table = _table(
        "peer", "address", "roles", "stage", "step", "round", "digest", "samples/s", "idle", "sent", "reason"
    )
    for peer in swarm.peers:
        table.add_row(*_peer_row(peer))
    return table


def _peer_row(peer: PeerStatus) -> tuple[str, ...]:
    expert = next((role.expert for role in peer.roles if role.expert is not None), None)
    seated = expert is not None and expert.seated
    facts = (
        (expert.stage_name, str(expert.step), str(expert.round), expert.digest[:8], f"{expert.samples_per_second:.0f}")
        if expert is not None and seated
        else ("", "", "", "", "")
    )
    roles = " ".join(role.role for role in peer.roles) or "none"
    reasons = [f"{role.role}: {role.reason}" for role in peer.roles if role.reason]
    reason = "; ".join([*([peer.reason] if peer.reason else []), *reasons])
    sent = size(sum(count.sent for count in peer.traffic))
    idle = f"{peer.idle_seconds:.1f}s" if peer.reachable else "unreachable"
    return (short(peer.peer), str(peer.endpoint), roles, *facts, idle, sent, reason)


def _times(swarm: SwarmStatus) -> Table:
    """Of the last steps. Computing, rounds and waiting make the whole; coding and sending go on beside them."""
    table = _table("time of", "computing", "in rounds", "waiting", "coding", "on the wire", "link down", "link up")
    for peer, expert in swarm.experts():
        times = expert.times
        if times is None or not times.seconds:
            continue
        shares = (times.compute, times.round, times.wait, times.codec, times.wire)
        links = {link.way: link for link in times.links}
        table.add_row(
            f"{short(peer.peer)} ({expert.stage_name})",
            *(f"{seconds / times.seconds:.0%}" for seconds in shares),
            *(_link(links[way]) if way in links else "" for way in (DOWN, UP)),
        )
    return table


def _link(link: LinkStatus) -> str:
    """Its rate, by how much the codec makes what goes over it smaller, and whether zstd helps."""
    rate = f"{size(link.rate)}/s" if link.rate else "?"
    smaller = f" {link.raw / link.bytes:.1f}x" if link.bytes else ""
    return f"{rate}{smaller}{' zstd' if link.compressed else ''}"


def _rounds(swarm: SwarmStatus) -> Table:
    """The last one of every expert, as that saw it; of which fragments, if they take turns."""
    table = _table("last round of", "number", "siblings", "bytes", "codec", "bits", "seconds", "digest", "")
    for peer, expert in swarm.experts():
        has_turns = len({receipt.fragments for receipt in expert.receipts}) > 1
        for receipt in expert.receipts[-1:]:
            which = f" of {spans(receipt.fragments)}" if has_turns else ""
            table.add_row(
                f"{short(peer.peer)} ({expert.stage_name})",
                f"{receipt.round}{which}",
                str(len(receipt.contributors)),
                size(receipt.bytes),
                receipt.codec,
                f"{receipt.bits:.3g}",
                f"{receipt.seconds:.2f}",
                receipt.digest[:8],
                _remarks(receipt, expert),
            )
    return table


def spans(numbers: tuple[int, ...]) -> str:
    """Growing numbers for people: 0-3 6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return " ".join("-".join(map(str, run)) for run in runs)


def _remarks(receipt: Receipt, expert: ExpertStatus) -> str:
    """What went wrong in that round, how many this expert has missed and replayed in all, and what goes on now."""
    facts = (("lost", map(short, receipt.lost)), ("clipped", map(short, receipt.clipped)), ("refused", receipt.refused))
    said = [f"{what} {names}" for what, names in ((what, " ".join(who)) for what, who in facts) if names]
    said += [f"replayed {expert.replayed} rounds so far"] if expert.replayed else []
    said += ["a round beside steps"] if expert.beside else []
    return "; ".join(said)


def _checkpoints(swarm: SwarmStatus) -> Table:
    """What the run would go on from if all of it stopped now."""
    table = _table("checkpoints of", "role", "stages", "newest of round", "written", "kept", "")
    for peer in swarm.peers:
        for role in peer.roles:
            held = role.checkpoints
            if held is None or not (held.checkpoints or held.fault):
                continue
            stages = spans(tuple(sorted({one.stage for one in held.checkpoints})))
            newest = str(max((one.round for one in held.checkpoints), default=""))
            written = f"{held.age:.0f} s ago" if held.checkpoints else "never"
            table.add_row(short(peer.peer), role.role, stages, newest, written, str(len(held.checkpoints)), held.fault)
    return table


def _losses(run: RunStatus | None) -> Text:
    lines = [f"lost {short(loss.peer)}: {loss.kind}: {loss.reason}" for loss in (run.losses if run else ())]
    return Text("\n".join(lines[-5:]), "red")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def _without_nan(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_nan(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
