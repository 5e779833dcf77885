"""`distqatctl export`: writes the model, and says what it wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from distqat.cli.show import size
from distqat.config import RunConfig

if TYPE_CHECKING:
    from distqat.roles.export import Exported


def run_export(roots: Sequence[Path], out: Path, config: RunConfig | None, with_graph: bool) -> None:
    """Write the model of a run out of the checkpoints below these folders. Raises what `roles.export` does."""
    # torch, which the rest of the command line does without.
    from distqat.roles.export import export

    for line in lines(out, export(roots, out, config, with_graph)):
        typer.echo(line)


def lines(out: Path, made: Exported) -> list[str]:
    """What was written, for people."""
    moment = made.moment
    rounds = ", ".join(str(number) for number in sorted(set(moment.rounds)))
    apart = "" if moment.is_exact else "; the stages differ by a few steps"
    found = [f"model {moment.config.model.name} of run {moment.run}, committed in round {rounds}{apart}"]
    what = {
        "model.safetensors": f"{made.num_tensors} tensors, {_formats(made.layers)}",
        "model.pt2": _of_graph(made),
        "export.json": "what they are",
    }
    found += [f"{out / name}: {what[name]}, {size(number)}" for name, number in made.sizes.items()]
    if made.graph is None:
        found.append(f"no graph: {made.fault}")
    return found


def _of_graph(made: Exported) -> str:
    batches = "batches of any size"
    if made.graph is not None and made.graph.samples is not None:
        batches = f"batches of {made.graph.samples} only"
    return f"torch.export graph for {batches}, its outputs are the model's bit for bit"


def _formats(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """Such as "4 layers quantised (3 w4a4, 1 w8a8)"."""
    if not layers:
        return "no layer quantised"
    kinds = Counter(_format(facts) for facts in layers.values())
    text = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return f"{len(layers)} layer{'s' if len(layers) > 1 else ''} quantised ({text})"


def _format(facts: Mapping[str, Any]) -> str:
    sides = (("w", facts["weights"]), ("a", facts["activations"]))
    return "".join(f"{letter}{side['bits']}" for letter, side in sides if side is not None)
