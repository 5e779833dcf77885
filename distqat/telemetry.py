"""What a daemon says of itself: log lines, counters, and the metric lines that a monitor collects."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.logging import RichHandler

from distqat.event_log import EventLog
from distqat.timeline import Timelines

LogFormat = Literal["rich", "json"]

KEPT_METRICS = 4096
"""Metric lines that a daemon keeps for its monitor; older ones are forgotten."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """One line of a daemon's metrics."""

    serial: int
    kind: str
    time: float
    labels: Mapping[str, str]
    values: Mapping[str, float]


@dataclass
class Telemetry:
    """One daemon's metrics and events; handed to whoever has something to report."""

    serial: int = 0
    metrics: deque[Metric] = field(default_factory=lambda: deque(maxlen=KEPT_METRICS))
    events: EventLog = field(default_factory=EventLog)
    timelines: Timelines = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.timelines = Timelines(time.monotonic, self.record)

    def record(self, kind: str, labels: Mapping[str, str], values: Mapping[str, float]) -> None:
        """Add a line: `kind` "step", "hop", "round", "evaluation"; labels are words, values numbers."""
        self.serial += 1
        self.metrics.append(Metric(self.serial, kind, time.time(), dict(labels), dict(values)))

    def since(self, serial: int) -> list[Metric]:
        """The lines after that serial, oldest first; all that are kept if the serial is of an earlier life."""
        if serial > self.serial:
            serial = 0
        return [metric for metric in self.metrics if metric.serial > serial]


class Rate:
    """Units per second over a sliding window; `now` is handed in."""

    def __init__(self, window: float = 10.0) -> None:
        self.window = window
        self._events: deque[tuple[float, float]] = deque()  # (moment, units), oldest first.

    def add(self, units: float, now: float) -> None:
        """So many units were done at this moment."""
        self._events.append((now, units))
        while self._events and self._events[0][0] < now - self.window:
            self._events.popleft()

    def value(self, now: float) -> float:
        """Units per second; 0 when nothing happened within the window."""
        recent = [event for event in self._events if event[0] >= now - self.window]
        if len(recent) < 2:
            return 0.0
        # The first event began before the window did: it marks the start, its units are not counted.
        return sum(units for _, units in recent[1:]) / max(recent[-1][0] - recent[0][0], 1e-9)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(level: str, log_format: LogFormat, file: Path | None = None) -> None:
    """Log to standard error in the given format, and to a file of the daemon's own if there is one."""
    root = logging.getLogger("distqat")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level.upper())
    root.propagate = False
    console: logging.Handler
    if log_format == "json":
        console = logging.StreamHandler()
        console.setFormatter(JsonFormatter())
    else:
        console = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False, markup=False)
        console.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    root.addHandler(console)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(file)
        to_file.setFormatter(
            JsonFormatter()
            if log_format == "json"
            else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        )
        root.addHandler(to_file)


def log_format() -> LogFormat:
    """How this process logs."""
    handlers = logging.getLogger("distqat").handlers
    return "json" if any(isinstance(handler.formatter, JsonFormatter) for handler in handlers) else "rich"


class Reason:
    """Why something is in the state it is in: one sentence, logged when it changes, shown by status."""

    def __init__(self, logger: logging.Logger, text: str) -> None:
        self._logger = logger
        self.text = text

    def __str__(self) -> str:
        return self.text

    def set(self, text: str, level: int = logging.INFO) -> None:
        """Say it; logged only if it is new."""
        if text != self.text:
            self.text = text
            self._logger.log(level, "%s", text)
