from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from distqat import telemetry
from distqat.telemetry import KEPT_METRICS, Rate, Reason, Telemetry, set_up_logging


@pytest.fixture
def quiet() -> Iterator[None]:
    """Give the root of our loggers back as it was."""
    root = logging.getLogger("distqat")
    before = root.level, root.propagate, list(root.handlers)
    yield
    for handler in root.handlers:
        handler.close()
    root.level, root.propagate, root.handlers[:] = before
    root.setLevel(before[0])


def test_metrics_since_a_serial() -> None:
    metrics = Telemetry()
    for step in range(3):
        metrics.record("step", {"pipeline": "p1"}, {"step": step})
    assert [metric.values["step"] for metric in metrics.since(1)] == [1, 2]
    assert metrics.since(3) == []
    line = metrics.since(2)[0]
    assert (line.serial, line.kind, line.labels) == (3, "step", {"pipeline": "p1"})


def test_metrics_are_bounded() -> None:
    metrics = Telemetry()
    for _ in range(KEPT_METRICS + 10):
        metrics.record("step", {}, {})
    kept = metrics.since(0)
    assert (len(kept), kept[0].serial) == (KEPT_METRICS, 11)


def test_a_rate_over_its_window() -> None:
    rate = Rate(window=10.0)
    assert rate.value(0.0) == 0.0
    for second in range(5):
        rate.add(32, float(second))
    assert rate.value(4.0) == 32.0
    assert rate.value(11.5) == 32.0  # Two events are left of it.
    assert rate.value(30.0) == 0.0


def test_a_reason_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    reason = Reason(telemetry.log, "starting")
    with caplog.at_level(logging.INFO, "distqat"):
        for text in (
            "starting",
            "waiting: stage 1 of 2 has no expert",
            "waiting: stage 1 of 2 has no expert",
            "training",
        ):
            reason.set(text)
    assert [record.getMessage() for record in caplog.records] == ["waiting: stage 1 of 2 has no expert", "training"]
    assert str(reason) == "training"


@pytest.mark.usefixtures("quiet")
def test_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "daemon.log"
    set_up_logging("info", "json", file)
    logger = logging.getLogger("distqat.test")
    logger.debug("not said")
    logger.warning('peer %s is "away"', "ab")
    try:
        raise ValueError("odd")
    except ValueError:
        logger.exception("failed")
    for text in (file.read_text(), capsys.readouterr().err):
        said, failed = (json.loads(line) for line in text.splitlines())
        assert (said["level"], said["logger"], said["message"]) == ("warning", "distqat.test", 'peer ab is "away"')
        assert "ValueError: odd" in failed["traceback"]


@pytest.mark.usefixtures("quiet")
def test_setting_up_again_replaces_what_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for level in ("debug", "warning"):
        set_up_logging(level, "rich", tmp_path / "daemon.log")
    logging.getLogger("distqat.test").info("not said")
    logging.getLogger("distqat.test").warning("said [once]")
    assert (tmp_path / "daemon.log").read_text().count("said [once]") == 1
    assert "not said" not in (tmp_path / "daemon.log").read_text()
    assert "said [once]" in capsys.readouterr().err
