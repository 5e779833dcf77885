from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.averaging import contribution, reduce
from distqat.averaging.blame import AttemptError
from distqat.averaging.outer import OuterState, split
from distqat.averaging.phases import Phase
from distqat.averaging.spans import Shape
from distqat.wire import codecs
from tests.averaging import naive
from tests.averaging.owners import Owners
from tests.averaging.vectors import drifted, outer_state, phase_of

NUMBERS = st.floats(-1e4, 1e4, width=32)


@st.composite
def contributions(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    members, length = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    parts = [draw(st.lists(NUMBERS, min_size=length, max_size=length)) for _ in range(members)]
    return parts, draw(st.lists(st.integers(1, 10_000), min_size=members, max_size=members))


@settings(deadline=None)
@given(contributions())
def test_against_the_naive_average(case: tuple[list[list[float]], list[int]]) -> None:
    parts, samples = case
    mean = naive.weighted_mean([torch.tensor(part) for part in parts], samples)
    for position, got in enumerate(mean.tolist()):
        exact = sum(part[position] * count for part, count in zip(parts, samples, strict=True)) / sum(samples)
        largest = max(abs(part[position]) for part in parts)
        assert got == pytest.approx(exact, rel=0, abs=1e-6 * max(largest, 1e-30) * len(parts))


@settings(deadline=None)
@given(contributions(), st.integers(1, 8))
def test_any_cut_gives_the_same_bits(case: tuple[list[list[float]], list[int]], at: int) -> None:
    parts, samples = case
    tensors = [torch.tensor(part) for part in parts]
    whole = naive.weighted_mean(tensors, samples)
    left = naive.weighted_mean([tensor[:at] for tensor in tensors], samples)
    right = naive.weighted_mean([tensor[at:] for tensor in tensors], samples)
    assert torch.equal(torch.cat((left, right)), whole)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=9), st.integers(1, 1000))
def test_one_contributor_is_taken_bit_for_bit(part: list[float], samples: int) -> None:
    tensor = torch.tensor(part)
    mean = naive.weighted_mean([tensor], [samples])
    assert mean.numpy().tobytes() == tensor.numpy().tobytes()


def test_weights_are_rounded_once_from_double() -> None:
    third = naive.weights([1, 2])[0]
    assert third.dtype == torch.float32
    assert third.item() == torch.tensor(1 / 3, dtype=torch.float64).float().item()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reduce, contribution):
        monkeypatch.setattr(module, "BLOCK", 512)


def siblings(how: Phase, codec: str, samples: Sequence[int], factors: Sequence[float] = ()) -> Owners:
    """Who have drifted from an anchor that is not zero."""
    state = outer_state()
    return Owners(state, locals_of(state, how, len(samples)), samples, how, codec, factors)


def locals_of(state: OuterState, how: Phase, number: int) -> list[torch.Tensor]:
    return [drifted(state, how, seed) for seed in range(number)]


PHASES = [phase_of(True, 0, 1, 2, 3), phase_of(False, 0), phase_of(False, 1, 3)]
CODECS = ("none", "bf16", "int8", "int4", "int2")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("how", PHASES)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("samples", [[1, 2, 3], [5], [0, 7, 2, 2]])
@pytest.mark.parametrize("chunk", [256, 1 << 20])
def test_the_mean_of_what_was_sent_and_of_the_own_encoded_once(
    how: Phase, codec: str, samples: list[int], chunk: int
) -> None:
    owners = siblings(how, codec, samples)
    locals_ = locals_of(owners.state, how, len(samples))
    vectors = [naive.delta(owners.state, local, how, codec == "none") for local in locals_]
    bounds = [0, *(member.end for member in owners.group.members)]
    expected = naive.average(codec, vectors, samples, bounds)
    assert torch.equal(owners.average(chunk).vector, expected)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("how", PHASES)
@pytest.mark.parametrize("codec", ["none", "int8"])
def test_a_long_contribution_is_scaled_down_to_its_factor(how: Phase, codec: str) -> None:
    """Its parameters move as if it had learned that much less; its running statistics count as ever."""
    factors = [1.0, 0.25, 1.0]
    owners = siblings(how, codec, [1, 2, 3], factors)
    state, shapes = owners.state, [owners.state.parts[index].shape for index in how.fragments]
    scaled = []
    for local, factor in zip(locals_of(state, how, 3), factors, strict=True):
        pieces = []
        for own, anchor, shape in zip(*_by_fragments(local, state, how, shapes), shapes, strict=True):
            end = shape.num_parameters
            pieces += [anchor[:end] - (anchor[:end] - own[:end]) * factor, own[end:]]
        scaled.append(torch.cat(pieces))
    # As if these were the local values, and nothing were scaled.
    expected = Owners(state, scaled, [1, 2, 3], how, "none").after()
    after = owners.after()
    moved = (expected.anchor - state.anchor).norm()
    assert float((after.anchor - expected.anchor).norm() / moved) <= (1e-5 if codec == "none" else 0.012)


def _by_fragments(
    local: torch.Tensor, state: OuterState, how: Phase, shapes: Sequence[Shape]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Local values and anchors by fragments."""
    return [own for own, _ in split(local, shapes)], [state.parts[index].anchor for index in how.fragments]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("how", PHASES)
def test_nobody_who_is_honest_is_refused_and_who_is_longer_than_said_is(codec: str, how: Phase) -> None:
    owners = siblings(how, codec, [1, 1, 1])
    owners.average()
    first, liar, last = owners.group.members
    liar = replace(liar, norm=liar.norm / (2.0 * owners.coder.growth) / 3**0.5)
    owners.group = replace(owners.group, members=(first, liar, last))
    with pytest.raises(AttemptError, match="the contribution of s1 is longer than it said") as caught:
        owners.average()
    assert caught.value.lost == "s1"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("is_plain", [True, False])
def test_what_is_not_finite_is_refused_by_name(bad: float, is_plain: bool) -> None:
    owners = siblings(phase_of(is_plain, 0), "none", [1, 1, 1])
    plain = owners.parts(0, 0, 300)
    for at in (0, 299):
        broken = bytearray(plain[1] or b"")
        broken[4 * at : 4 * at + 4] = bytes(codecs.find("none").encode(torch.tensor([bad])))
        payload = memoryview(bytearray(owners.coder.size(owners.elements, torch.float32)))
        with pytest.raises(AttemptError, match="the contribution of s1 holds NaN or infinity") as caught:
            owners.reducer(0).reduce(0, 300, [None, memoryview(broken), plain[2]], payload)
        assert caught.value.lost == "s1"


def test_scales_that_are_no_numbers_are_refused_by_name() -> None:
    owners = siblings(phase_of(False, 0), "int8", [1, 1])
    parts = owners.parts(0, 0, 512)
    assert parts[1] is not None
    broken = bytearray(parts[1])
    broken[0:4] = b"\xff" * 4
    payload = memoryview(bytearray(owners.coder.size(owners.elements, torch.float32)))
    with pytest.raises(AttemptError, match="s1: codec int8: a scale") as caught:
        owners.reducer(0).reduce(0, 512, [None, memoryview(broken)], payload)
    assert caught.value.lost == "s1"
