"""What a killed stage goes on with: who is not killed goes on as if nobody looked, and each choice is another."""

from __future__ import annotations

import pytest
import torch

from bench import restored
from bench.restored import CHOICES, Choice, Course, Swarm, config
from distqat.data.sources import Source, open_source
from distqat.model.local import OPTIMIZER, VALUES
from distqat.sections import SyncSection
from tests.support import run


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(config("digits", 1))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"SYNC": SyncSection(warmup_steps=1, inner_steps=4), "SETTLED": 1, "OFFSETS": (2,), "AFTER": 2}
    for name, value in {**short, "ROUNDS": 1, "HELD_OUT": 8}.items():
        monkeypatch.setattr(restored, name, value)


def test_every_choice_is_measured_beside_a_run_without_a_kill(source: Source) -> None:
    losses = run(Course(source).losses(1))
    assert list(losses) == ["nobody", *CHOICES]
    assert {len(found) for found in losses.values()} == {restored.STAGES}
    # The copy of that very moment, with its moments, is what was killed.
    assert losses["copy"] == losses["nobody"]
    assert len({tuple(found) for name, found in losses.items() if "20" not in name}) > 6
    lines = restored.lines("digits", [losses])
    assert len(lines) == 2 * len(CHOICES)
    assert lines[0].case == "digits, anchor, loss of 2 steps after a kill"
    assert lines[0].peer_value == pytest.approx(sum(pair[0] for pair in losses["nobody"]) / restored.STAGES)


def test_what_a_stage_begins_with(source: Source) -> None:
    swarm = Swarm(source, config("digits", 1))
    swarm.advance()
    swarm.step()
    stage = swarm.pipelines[-1][0]
    first = stage.local_state()
    swarm.step()
    copies = [first, stage.local_state()]

    swarm.restore(0, Choice(), copies, 2)
    assert torch.equal(stage.flatten(), swarm.states[0].anchor)
    assert not any(t.any() for name, t in stage.local_state().tensors.items() if name.startswith(OPTIMIZER))
    swarm.restore(0, Choice("copy", 1, True), copies, 2)
    held = stage.local_state()
    assert all(torch.equal(held.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert held.version == copies[-1].version
    swarm.restore(0, Choice("sibling", 0, False), copies, 2)
    sibling = swarm.pipelines[0][0].local_state()
    assert all(
        torch.equal(stage.local_state().tensors[name], tensor)
        for name, tensor in sibling.tensors.items()
        if name.startswith(VALUES)
    )
