"""The outer step, worked out by hand: two and three siblings, unequal weights, three rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distqat.averaging import outer
from distqat.averaging.outer import OuterState
from distqat.averaging.phases import Phase, phase
from distqat.sections import SyncSection
from tests.averaging import naive
from tests.averaging.owners import Owners
from tests.averaging.words import founding

HALVES = Phase(is_plain=False, steps=10, learning_rate=0.5, momentum=0.5)
"""All arithmetic with halves is exact in fp32, so a person can follow it."""


def one_round(state: OuterState, locals_: list[torch.Tensor], samples: list[int], how: Phase) -> OuterState:
    """As siblings take it, each the owner of a slice; the plain form comes to the same."""
    after = Owners(state, locals_, samples, how).after()
    parts = [naive.delta(state, local, how) for local in locals_]
    plain = outer.apply(state, naive.weighted_mean(parts, samples), how)
    assert after.digest == plain.digest
    return after


def test_two_siblings_three_rounds_by_hand() -> None:
    # Two parameters and one buffer; weights 1 : 3, so 1/4 and 3/4; eta = 1/2, mu = 1/2.
    state = founding(torch.tensor([1.0, 2.0, 8.0]), 2)

    # Round 0. Deltas: A (1-0, 2-2) = (1, 0); B (1-2, 2-0) = (-1, 2).
    # d = 1/4 (1, 0) + 3/4 (-1, 2) = (-0.5, 1.5).  m = d.  d + mu m = 1.5 d = (-0.75, 2.25).
    # theta = (1, 2) - 1/2 (-0.75, 2.25) = (1.375, 0.875).  Buffer: 1/4 4 + 3/4 8 = 7.
    state = one_round(state, [torch.tensor([0.0, 2.0, 4.0]), torch.tensor([2.0, 0.0, 8.0])], [1, 3], HALVES)
    assert state.anchor.tolist() == [1.375, 0.875, 7.0]
    assert state.momentum.tolist() == [-0.5, 1.5]

    # Round 1. Locals (1.375, 0.875) -> A moved by (-1, +1), B by (0, -1): deltas (1, -1) and (0, 1).
    # d = (0.25, 0.5).  m = 1/2 (-0.5, 1.5) + d = (0, 1.25).  d + mu m = (0.25, 1.125).
    # theta = (1.375, 0.875) - (0.125, 0.5625) = (1.25, 0.3125).  Buffer: 1/4 2 + 3/4 2 = 2.
    state = one_round(state, [torch.tensor([0.375, 1.875, 2.0]), torch.tensor([1.375, -0.125, 2.0])], [1, 3], HALVES)
    assert state.anchor.tolist() == [1.25, 0.3125, 2.0]
    assert state.momentum.tolist() == [0.0, 1.25]

    # Round 2. Nobody moved: d = 0.  m = 1/2 (0, 1.25) = (0, 0.625).  d + mu m = (0, 0.3125).
    # theta = (1.25, 0.3125) - (0, 0.15625) = (1.25, 0.15625): momentum alone goes on.
    still = state.anchor.clone()
    state = one_round(state, [still, still], [1, 3], HALVES)
    assert state.anchor.tolist() == [1.25, 0.15625, 2.0]
    assert state.momentum.tolist() == [0.0, 0.625]
    assert state.round == 3


def test_three_siblings_by_hand() -> None:
    # Weights 2 : 1 : 1. Deltas 4, 8, -8 on one parameter: d = 1/2 4 + 1/4 8 - 1/4 8 = 2.
    # m = 2.  d + mu m = 3.  theta = 16 - 1.5 = 14.5.
    state = founding(torch.tensor([16.0]), 1)
    locals_ = [torch.tensor([12.0]), torch.tensor([8.0]), torch.tensor([24.0])]
    state = one_round(state, locals_, [2, 1, 1], HALVES)
    assert (state.anchor.tolist(), state.momentum.tolist()) == ([14.5], [2.0])
    # The same again from there. Deltas 2.5, 6.5, -9.5: d = 1.25 + 1.625 - 2.375 = 0.5.
    # m = 1 + 0.5 = 1.5.  d + mu m = 1.25.  theta = 14.5 - 0.625 = 13.875.
    state = one_round(state, locals_, [2, 1, 1], HALVES)
    assert (state.anchor.tolist(), state.momentum.tolist()) == ([13.875], [1.5])
    # Deltas 1.875, 5.875, -10.125: d = 0.9375 + 1.46875 - 2.53125 = -0.125.
    # m = 0.75 - 0.125 = 0.625.  d + mu m = 0.1875.  theta = 13.875 - 0.09375 = 13.78125.
    state = one_round(state, locals_, [2, 1, 1], HALVES)
    assert (state.anchor.tolist(), state.momentum.tolist()) == ([13.78125], [0.625])


def test_every_rounding_of_the_defaults_against_numpy() -> None:
    """eta 0.7, mu 0.9 and weights of thirds round everywhere; numpy does one fp32 operation at a time."""
    sync = SyncSection(warmup_steps=0)
    how = phase(0, sync)
    eta, mu = np.float32(sync.outer_learning_rate), np.float32(sync.outer_momentum)
    draw = np.random.default_rng(11)
    theta: npt.NDArray[np.float32] = draw.standard_normal(1000, dtype=np.float32)
    momentum: npt.NDArray[np.float32] = np.zeros(1000, dtype=np.float32)
    state = founding(torch.from_numpy(theta.copy()), 1000)
    samples = [96, 160, 32]
    weights = [np.float32(count / sum(samples)) for count in samples]
    for _ in range(3):
        locals_ = [theta + draw.standard_normal(1000, dtype=np.float32) for _ in samples]
        state = one_round(state, [torch.from_numpy(local) for local in locals_], samples, how)
        d: npt.NDArray[Any] = (theta - locals_[0]) * weights[0]
        for local, weight in zip(locals_[1:], weights[1:], strict=True):
            d = d + (theta - local) * weight
        momentum = (momentum * mu + d).astype(np.float32, casting="no")
        theta = (theta - (d + momentum * mu) * eta).astype(np.float32, casting="no")
        assert state.anchor.numpy().tobytes() == theta.tobytes()
        assert state.momentum.numpy().tobytes() == momentum.tobytes()


def test_a_known_digest() -> None:
    state = founding(torch.tensor([1.0, 2.0, 8.0]), 2)
    state = one_round(state, [torch.tensor([0.0, 2.0, 4.0]), torch.tensor([2.0, 0.0, 8.0])], [1, 3], HALVES)
    assert state.digest == "4bfd5212a3278624a1a7f10d855f7e04"


def test_plain_averaging_with_one_contributor_changes_no_bit() -> None:
    how = phase(0, SyncSection(warmup_steps=1))
    anchor, local = torch.tensor([1e8, 1.0]), torch.tensor([1e-8, -0.0])
    # Through differences this would fail: 1e8 - (1e8 - 1e-8) is 0 in fp32.
    assert (anchor - (anchor - local)).tolist() != local.tolist()
    state = one_round(founding(anchor, 2), [local], [5], how)
    assert state.anchor.numpy().tobytes() == local.numpy().tobytes()
    assert state.momentum.tolist() == [0.0, 0.0]
