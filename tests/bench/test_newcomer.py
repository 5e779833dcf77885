"""The courses of a newcomer: who stays goes on as if nobody had looked, and each remedy changes what it says."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from bench import newcomer
from bench.newcomer import REMEDIES, Course, Pair, Plan, Remedy
from distqat.config import load
from distqat.data.sources import Source, open_source
from distqat.sections import SyncSection
from tests.support import run

PLAN = Plan("after it", 2, (1, 2))


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(load(overrides=["data.source=pydocs", "data.sequence=64"]).run_config())


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomer, "SYNC", SyncSection(warmup_steps=1, inner_steps=2))
    monkeypatch.setattr(newcomer, "HELD_OUT", 8)


def test_every_remedy_is_measured_beside_a_run_without_a_join(source: Source) -> None:
    losses = run(Course(source).losses(1, PLAN))
    assert list(losses) == ["stays", *REMEDIES]
    assert all(len(found) == 2 for found in losses.values())
    assert len({tuple(found) for found in losses.values()}) == len(losses)
    pair = Pair(source, 1)
    for _ in range(PLAN.join + 1):
        pair.advance()
    assert losses["stays"][0] == pair.look()
    lines = newcomer.lines(PLAN, [losses, losses])
    assert len(lines) == 2 * len(REMEDIES)
    assert lines[0].case == "join after it, cold, held-out loss, mean of rounds 1, 2"
    assert lines[0].value == pytest.approx(sum(losses["cold"]) / 2)
    assert lines[1].peer_value == losses["stays"][-1]


def test_what_a_newcomer_begins_with(source: Source) -> None:
    pair = Pair(source, 1)
    pair.advance()
    before = pair.save()
    sibling, last = (stage.optimizer for stage in pair._stages)

    assert not torch.equal(_first(sibling.state()), _first(last.state()))
    pair.replace_last(Remedy(moments=True))
    assert torch.equal(_first(sibling.state()), _first(last.state()))
    pair.replace_last(Remedy())
    assert not _first(last.state()).any()
    pair.load(before)
    assert torch.equal(_first(last.state()), _first(before.optimizers[1]))


def _first(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for name, tensor in sorted(state.items()) if name.startswith("first/")])
