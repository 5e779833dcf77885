"""A batch into microbatches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.errors import DataError
from distqat.pipeline.split import split


@given(samples=st.integers(1, 200), microbatches=st.integers(1, 40))
def test_every_sample_once_in_order_and_as_equal_as_possible(samples: int, microbatches: int) -> None:
    ranges = split(samples, microbatches)
    assert [index for part in ranges for index in part] == list(range(samples))
    assert len(ranges) == min(samples, microbatches)
    sizes = [len(part) for part in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("samples", "microbatches"), [(0, 4), (4, 0), (-1, 1)])
def test_an_empty_batch_is_refused(samples: int, microbatches: int) -> None:
    with pytest.raises(DataError, match="cannot be split"):
        split(samples, microbatches)
