"""Where metrics go: a file with one line each, and Weights & Biases without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distqat.ids import RunId
from distqat.roles.messages import MetricLine
from distqat.roles.sinks import METRICS_FILE, last_serials, open_sinks
from distqat.sections import MonitorSection
from tests.support import run, until

RUN = RunId("digits", "0" * 32)
LINES = [
    MetricLine(1, "step", 10.0, {"pipeline": "p1"}, {"loss": 2.5, "step": 1.0}),
    MetricLine(2, "round", 11.0, {"stage": "mlp/0"}, {"seconds": 0.5}),
    MetricLine(3, "hop", 12.0, {"pipeline": "p1", "stage": "mlp/0"}, {"wait": 0.25}),
]


def test_each_metric_is_one_json_line(tmp_path: Path) -> None:
    with open_sinks(MonitorSection(wandb="off"), RUN, tmp_path) as sinks:
        for sink in sinks:
            sink.write("alice", LINES)
    rows = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert rows[0] == {
        "peer": "alice", "serial": 1, "kind": "step", "time": 10.0, "pipeline": "p1", "loss": 2.5, "step": 1.0,
    }  # fmt: skip
    assert rows[1]["seconds"] == 0.5


def test_a_monitor_that_returns_knows_what_it_has(tmp_path: Path) -> None:
    with open_sinks(MonitorSection(wandb="off"), RUN, tmp_path) as sinks:
        sinks[0].write("alice", LINES)
        sinks[0].write("bob", LINES[:1])
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"peer": "alice", "ser')
    assert last_serials(tmp_path / METRICS_FILE) == {"alice": 3, "bob": 1}
    assert last_serials(tmp_path / "nothing.jsonl") == {}


def test_without_a_key_nothing_goes_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with open_sinks(MonitorSection(), RUN, tmp_path) as sinks:
        assert len(sinks) == 1


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_writes_a_run_that_can_be_synchronised_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_sinks(MonitorSection(wandb="offline"), RUN, tmp_path) as sinks:
        assert len(sinks) == 2
        for sink in sinks:
            sink.write("alice", LINES)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    # Its writer process closes the file a few milliseconds after `finish` has returned (wandb 0.31).
    # The stages of a pipeline do not overwrite each other.
    run(until(lambda: all(name in log.read_bytes() for name in (b"step/p1/loss", b"hop/p1/mlp/0/wait"))))
