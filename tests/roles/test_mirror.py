"""Which of the states that a mirror hears of at once it writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distqat.averaging import kept
from distqat.averaging.outer import OuterState, Part
from distqat.ids import PipelineId, StepRef
from distqat.roles.mirror import _due


def state(number: int) -> OuterState:
    parts = [Part.of(torch.full((3,), float(number)), torch.zeros(3))]
    return OuterState.of(parts, number, cut=[StepRef(PipelineId("p"), number)])


def test_of_several_that_are_due_the_last_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "replay", lambda before, one, how: state(one.round + 1))

    def due(begin: int | None, end: int) -> int | None:
        missed = [SimpleNamespace(round=number) for number in range(begin, end)] if begin is not None else []
        parts: list[Any] = [
            state(begin) if begin is not None else None,
            state(end),
            SimpleNamespace(since=lambda number, digest: missed),
            SimpleNamespace(circle=SimpleNamespace(phase=lambda number: None)),
            4,
        ]
        found = _due(*parts)
        return found.round if found is not None else None

    assert due(1, 10) == 8
    assert due(1, 8) == 8
    assert due(1, 3) is None
    # What it finds at first is none, wherever that is: other stages may be found at other cuts.
    assert [due(None, number) for number in (3, 4, 5)] == [None, None, None]
