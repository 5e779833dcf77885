"""Anybody can make anybody's vector, and say how far an average is from the true one."""

from __future__ import annotations

import pytest
import torch

from bench.peers import vectors
from bench.peers.vectors import error, vector

ELEMENTS = 1000


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PIECE", 300)


def test_a_seed_always_makes_the_same_numbers() -> None:
    first = vector(1, ELEMENTS)
    assert torch.equal(first, vector(1, ELEMENTS))
    assert not torch.equal(first, vector(2, ELEMENTS))
    assert abs(float(first.mean())) < 0.1
    assert float(first.std()) == pytest.approx(1.0, abs=0.1)


def test_the_mean_of_all_has_no_error_to_speak_of() -> None:
    mean = torch.stack([vector(seed, ELEMENTS) for seed in range(3)]).mean(0)
    assert error(mean, range(3)) < 1e-6


def test_the_error_is_that_of_the_naive_formula() -> None:
    found = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(9))
    mean = torch.stack([vector(seed, ELEMENTS) for seed in range(4)]).double().mean(0)
    expected = float((found - mean).norm() / mean.norm())
    assert error(found, range(4)) == pytest.approx(expected, rel=1e-9)
