"""The verdict of a sandbox run: each shortcoming is seen and named."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from distqat.cli.scorecard import Baseline, Scorecard, read_baseline
from distqat.config import load
from distqat.errors import RemoteError
from distqat.ids import Endpoint
from distqat.roles.status import (
    ExpertStatus,
    PeerStatus,
    PipelineStatus,
    RoleStatus,
    RunStatus,
    SwarmStatus,
    Traffic,
)

BASELINE = Baseline("accuracy", 0.98, 600.0, 540, 30.0)


def expert(name: str, stage: int, digest: str, round: int = 5) -> PeerStatus:
    facts = ExpertStatus(True, stage, f"mlp/{stage}", "p1", 10, round, digest)
    return PeerStatus(name, Endpoint(name, 1), roles=(RoleStatus("expert", expert=facts),), traffic=(Traffic("a", 2),))


def swarm(evaluation: float = 0.97, run: RunStatus | None = None, digest: str = "same") -> SwarmStatus:
    lines = tuple(
        PipelineStatus(name, step=270, evaluation=evaluation, samples_per_second=200.0) for name in ("p1", "p2")
    )
    books = run or RunStatus(committed=640, budget=640)
    head = PeerStatus("h", roles=(RoleStatus("client", run=books), RoleStatus("trainer", pipelines=lines)))
    return SwarmStatus((head, expert("a", 0, "x"), expert("b", 0, "x"), expert("c", 1, "same"), expert("d", 1, digest)))


def card(status: SwarmStatus, baseline: Baseline | None = BASELINE) -> Scorecard:
    return Scorecard.of(load(), status, 60.0, baseline)


def shown(of: Scorecard) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(of.render())
    return out.getvalue()


def test_a_good_run_passes_and_everything_is_counted() -> None:
    good = card(swarm())
    assert good.passed
    assert (good.steps, good.rounds, good.samples_per_second) == (540, 5, 400.0)
    assert good.bytes_by_flow == {"a": 8}
    assert good.stages_compared == 2
    tree = json.loads(good.as_json())
    assert tree["passed"] is True
    assert tree["metric"] == "accuracy"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (swarm(evaluation=0.94), "below 0.95"),
        (swarm(evaluation=0.955), "too far from the baseline"),
        (swarm(evaluation=float("nan")), "below 0.95"),
        (swarm(digest="other"), "digests are not equal"),
        (swarm(run=RunStatus(committed=639, budget=640)), "1 samples lost"),
        (swarm(run=RunStatus(committed=640, budget=640, doubled=3)), "3 doubled"),
        (swarm(run=RunStatus(committed=640, budget=640, lost=2)), "2 samples lost"),
        (swarm(run=RunStatus(committed=608, budget=640, skipped=32)), "32 samples skipped"),
    ],
)
def test_each_shortcoming_is_named(status: SwarmStatus, words: str) -> None:
    failed = card(status)
    assert not failed.passed
    assert words in "; ".join(failed.failures)


def test_samples_that_were_skipped_are_shown_and_not_lost() -> None:
    bad = card(swarm(run=RunStatus(committed=608, budget=640, skipped=32)))
    assert (bad.samples_lost, bad.samples_skipped) == (0, 32)
    assert "samples skipped" in shown(bad)
    assert "skipped" not in shown(card(swarm()))


def test_siblings_of_different_rounds_are_not_equal() -> None:
    status = swarm()
    behind = SwarmStatus((*status.peers[:4], expert("d", 1, "same", round=4)))
    assert not card(behind).digests_equal


def test_with_two_pipelines_and_nothing_to_compare_it_fails() -> None:
    status = swarm()
    assert not card(SwarmStatus((status.peers[0], status.peers[1], status.peers[3]))).passed


def test_one_pipeline_has_nothing_to_compare_and_may_pass() -> None:
    status = swarm()
    head = status.peers[0]
    trainer = replace(head.roles[1], pipelines=head.roles[1].pipelines[:1])
    lone = SwarmStatus((replace(head, roles=(head.roles[0], trainer)), status.peers[1], status.peers[3]))
    assert card(lone).passed


def test_bits_per_byte_may_be_two_hundredths_above_the_baseline() -> None:
    settings = load(overrides=["data.source=pydocs", "model.name=gpt"])
    baseline = Baseline("bits_per_byte", 3.0, 1.0, 1, 1.0)
    assert Scorecard.of(settings, swarm(evaluation=3.05), 1.0, baseline).passed
    assert not Scorecard.of(settings, swarm(evaluation=3.07), 1.0, baseline).passed


def test_the_baseline_is_the_last_line_that_was_printed() -> None:
    text = 'noise\n{"metric": "accuracy", "value": 0.9, "samples_per_second": 1.0, "steps": 2, "seconds": 3.0}\n'
    assert read_baseline(text) == Baseline("accuracy", 0.9, 1.0, 2, 3.0)
    for bad in ("", "noise", "{}", '{"metric": 1}'):
        with pytest.raises(RemoteError, match="no result"):
            read_baseline(bad)
