"""Where a monitor puts metric lines: a JSONL file, and Weights & Biases if it is asked for."""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from distqat.errors import ConfigError
from distqat.ids import RunId, short
from distqat.roles.messages import MetricLine
from distqat.sections import MonitorSection

log = logging.getLogger(__name__)


METRICS_FILE = "metrics.jsonl"


class Sink(Protocol):
    """Takes metric lines of one peer. Called in a thread, never on the event loop."""

    def write(self, peer: str, lines: Sequence[MetricLine]) -> None:
        """Keep the lines; oldest first."""
        ...


class JsonlSink:
    """One JSON object a line: peer, serial, kind, time, labels and values side by side."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            # The line that was being written when the monitor was killed: what follows gets a line of its own.
            with path.open("a") as file:
                file.write("\n")

    def write(self, peer: str, lines: Sequence[MetricLine]) -> None:
        """Append the lines."""
        rows = [
            {**m.labels, **m.values, "peer": peer, "serial": m.serial, "kind": m.kind, "time": m.time} for m in lines
        ]
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def last_serials(path: Path) -> dict[str, int]:
    """The last serial of each peer in a metrics file, so that a monitor that returns goes on where it was killed."""
    if not path.exists():
        return {}
    seen: dict[str, int] = {}
    for text in path.read_text().splitlines():
        try:
            row = json.loads(text)
            seen[row["peer"]] = int(row["serial"])
        except (ValueError, KeyError, TypeError):
            # The line that was being written when it was killed.
            log.warning("%s: skipped a torn line", path)
    return seen


class WandbSink:
    """Weights & Biases: one history, values named `<kind>/<pipeline, stage, or both>/<value>`."""

    def __init__(self, wandb_run: Any) -> None:
        self._run = wandb_run

    def write(self, peer: str, lines: Sequence[MetricLine]) -> None:
        """Log the lines."""
        for line in lines:
            words = [line.labels[name] for name in ("pipeline", "stage") if line.labels.get(name)]
            where = "/".join(words) or short(peer)
            self._run.log({f"{line.kind}/{where}/{name}": value for name, value in line.values.items()})


@contextmanager
def open_sinks(section: MonitorSection, run: RunId, folder: Path) -> Iterator[list[Sink]]:
    """The sinks that the settings ask for. Raises ConfigError when wandb is asked for and not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    sinks: list[Sink] = [JsonlSink(folder / METRICS_FILE)]
    mode = section.wandb
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "off"
    if mode == "off":
        yield sinks
        return
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        if section.wandb == "auto":
            log.warning("WANDB_API_KEY is set, but the wandb package is not there: pip install 'distqat[wandb]'")
            yield sinks
            return
        raise ConfigError("monitor.wandb needs the wandb package: pip install 'distqat[wandb]'") from None
    wandb_run = wandb.init(project=section.wandb_project, name=str(run), mode=mode, dir=str(folder))
    try:
        yield [*sinks, WandbSink(wandb_run)]
    finally:
        wandb_run.finish()
