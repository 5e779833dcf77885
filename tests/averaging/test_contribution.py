from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.averaging import contribution as room
from distqat.averaging import spans
from distqat.averaging.contribution import ROW, Average, Contribution, sum_of_squares
from distqat.averaging.feedback import Feedback
from distqat.averaging.outer import MARGIN, split
from distqat.averaging.phases import Phase
from distqat.averaging.spans import Shape
from distqat.errors import TensorError
from distqat.wire import codecs
from distqat.wire.codecs.codec import Floats
from distqat.wire.codecs.memory import SCRATCH
from tests.averaging import naive
from tests.averaging.vectors import drifted, normal, outer_state, phase_of

LOSSY = ("bf16", "int8", "int4", "int2")
PHASES = [phase_of(True, 0, 1, 2, 3), phase_of(False, 0), phase_of(False, 1, 3), phase_of(False, 2)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BLOCK", 512)


def read(contribution: Contribution, begin: int, end: int, is_exact: bool) -> torch.Tensor:
    out = np.empty(end - begin, np.float32)
    contribution.read(begin, out, is_exact)
    return torch.from_numpy(out)


@pytest.mark.parametrize("how", PHASES)
@pytest.mark.parametrize("is_exact", [True, False])
@given(first=st.integers(0, 2143), second=st.integers(0, 2143))
@settings(max_examples=20, deadline=None)
def test_any_part_is_that_of_the_whole_vector(how: Phase, is_exact: bool, first: int, second: int) -> None:
    state = outer_state()
    local = drifted(state, how, 5)
    whole = naive.delta(state, local, how, is_exact)
    begin, end = sorted((min(first, len(whole)), min(second, len(whole))))
    contribution = Contribution.of(state, local, how, Feedback())
    assert torch.equal(read(contribution, begin, end, is_exact), whole[begin:end])


@pytest.mark.parametrize("how", PHASES)
@pytest.mark.parametrize("codec", LOSSY)
def test_encoded_block_by_block_it_is_the_whole_encoded(how: Phase, codec: str) -> None:
    state = outer_state()
    local = drifted(state, how, 5)
    contribution = Contribution.of(state, local, how, Feedback())
    expected = codecs.find(codec).encode(naive.delta(state, local, how, is_exact=False))
    assert contribution.encode(codec) == expected


def test_it_is_encoded_once_for_all_attempts() -> None:
    state, how = outer_state(), phase_of(False, 0)
    contribution = Contribution.of(state, drifted(state, how, 5), how, Feedback())
    assert not contribution.is_encoded("int8")
    assert contribution.encode("int8") is contribution.encode("int8")
    assert contribution.is_encoded("int8")
    assert not contribution.is_encoded("int4")
    # What is exact is never copied: it is read again out of the anchor and the local values.
    assert contribution.is_encoded("none")
    assert contribution.encode("none") is None


@pytest.mark.parametrize("codec", LOSSY)
def test_parts_are_encoded_when_they_are_asked_for_and_only_once(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BLOCK", 256)
    state, how = outer_state(), phase_of(False, 0, 1)
    local, read = drifted(state, how, 5), []
    plain = Contribution.read

    def note(self: Contribution, begin: int, out: Floats, is_exact: bool) -> None:
        read.append(begin)
        plain(self, begin, out, is_exact)

    contribution = Contribution.of(state, local, how, Feedback())
    monkeypatch.setattr(Contribution, "read", note)
    for begin, end in ((512, 700), (300, 600), (512, 768)):
        assert not contribution.is_encoded(codec)
        data = contribution.encode(codec, begin, end)
        assert contribution.is_encoded(codec, begin, end)
    assert read == [512, 256]
    assert contribution.encode(codec) is data
    assert sorted(read) == list(range(0, contribution.elements, 256))
    assert data == codecs.find(codec).encode(naive.delta(state, local, how, is_exact=False))


@pytest.mark.parametrize("how", PHASES)
def test_the_norm_is_that_of_the_parameters(how: Phase) -> None:
    state = outer_state()
    local = drifted(state, how, 5)
    squares = 0.0
    for index, (own, shape) in zip(
        how.fragments, split(local, [state.parts[index].shape for index in how.fragments]), strict=True
    ):
        end = shape.num_parameters
        squares += float((state.parts[index].anchor[:end] - own[:end]).double().square().sum())
    assert Contribution.of(state, local, how, Feedback()).norm == pytest.approx(squares**0.5, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("at", [0, 700, 1076])
@pytest.mark.parametrize("is_plain", [True, False])
def test_what_is_not_finite_is_refused(bad: float, at: int, is_plain: bool) -> None:
    state, how = outer_state(), phase_of(is_plain, 0, 1)
    local = drifted(state, how, 5)
    local[at] = bad
    with pytest.raises(TensorError, match="NaN or infinity"):
        Contribution.of(state, local, how, Feedback())


def test_nothing_that_it_reads_is_changed() -> None:
    state, how = outer_state(), phase_of(False, 0, 1, 2, 3)
    local = drifted(state, how, 5)
    before = (local.clone(), state.anchor.clone(), state.momentum.clone())
    contribution = Contribution.of(state, local, how, Feedback())
    for codec in LOSSY:
        contribution.encode(codec)
    assert all(torch.equal(a, b) for a, b in zip(before, (local, state.anchor, state.momentum), strict=True))


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("is_exact", [True, False])
def test_what_earlier_rounds_lost_is_in_it(is_plain: bool, is_exact: bool) -> None:
    state, how = outer_state([Shape(6, 8), Shape(3, 3)]), phase_of(is_plain, 0, 1)
    local, residual = drifted(state, how, 5), torch.arange(8.0)
    feedback = Feedback(1.0)
    feedback.load({0: residual})
    contribution = Contribution.of(state, local, how, feedback)
    assert contribution.has_residual
    lost = torch.cat((residual, torch.zeros(3)))
    # A difference grows by what was lost; a value lies that much further from the anchor.
    sign = torch.full((11,), 1.0 if not is_exact else -1.0)
    if is_exact and not is_plain:
        sign[:6], sign[8:] = 1.0, 1.0
    expected = naive.delta(state, local, how, is_exact) + sign * lost
    assert torch.equal(read(contribution, 0, 11, is_exact), expected)
    moved = (naive.delta(state, local, how, is_exact=False) + lost).double()
    assert contribution.norm == pytest.approx(float(moved[[0, 1, 2, 3, 4, 5, 8, 9, 10]].norm()), rel=1e-5)


@pytest.mark.parametrize("codec", ["none", *LOSSY])
def test_an_average_is_read_out_of_its_bytes(codec: str) -> None:
    vector = drifted(outer_state(), phase_of(True, 0, 1, 2, 3), 7)
    average = Average(codec, len(vector), codecs.find(codec).encode(vector), bytes=0)
    assert torch.equal(average.vector, naive.through(codec, vector))
    part = average.read(700, 1468, np.empty(768 + MARGIN, np.float32))
    assert torch.equal(torch.from_numpy(part), average.vector[700:1468])


@pytest.mark.parametrize("length", [0, 1, ROW - 1, ROW, ROW + 1, 3 * ROW + 5])
def test_the_square_of_any_length(length: int) -> None:
    values = normal(length, 3).numpy()
    assert sum_of_squares(values) == pytest.approx(float((values.astype(np.float64) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e30])
@pytest.mark.parametrize("at", [0, ROW - 1, ROW, 2 * ROW, 2 * ROW + 4])
def test_the_square_of_what_cannot_be_measured_is_not_finite(bad: float, at: int) -> None:
    values = normal(2 * ROW + 5, 3).numpy()
    values[at] = bad
    assert not math.isfinite(sum_of_squares(values))


def test_a_block_has_room_in_the_scratch_memory() -> None:
    assert len(SCRATCH.block) >= spans.BLOCK


def test_contributions_can_be_encoded_on_several_threads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """None writes where another one works."""
    state, how = outer_state(), phase_of(False, 0)
    locals_ = [drifted(state, how, seed) for seed in range(2)]
    contributions = [Contribution.of(state, local, how, Feedback()) for local in locals_]
    both_have_read = threading.Barrier(2, timeout=30)
    plain = Contribution.read

    def read(self: Contribution, begin: int, out: Floats, is_exact: bool) -> None:
        plain(self, begin, out, is_exact)
        both_have_read.wait()

    monkeypatch.setattr(Contribution, "read", read)
    with ThreadPoolExecutor(2) as threads:
        encoded = list(threads.map(lambda contribution: contribution.encode("int8"), contributions))
    for data, local in zip(encoded, locals_, strict=True):
        assert data == codecs.find("int8").encode(naive.delta(state, local, how, is_exact=False))
