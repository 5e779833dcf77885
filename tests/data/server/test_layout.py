from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.data.server.layout import ALIGNMENT, BATCHES, LEAST_SLOTS, MOST_SLOTS, PAGE, Column, Layout, Sizes, sizes
from distqat.data.sources import Arrays
from distqat.errors import DataError

IMAGES: Arrays = {"inputs": np.zeros((3, 1, 5, 5), np.float32), "labels": np.arange(3), "valid": np.ones((3, 2), bool)}
LAYOUT = Layout.of(IMAGES)


def test_what_is_written_to_a_slot_is_read_from_it() -> None:
    slot = memoryview(bytearray(LAYOUT.slot_bytes(7)))
    for name, view in LAYOUT.views(slot, 7, 4, 3).items():
        view[:] = (
            np.arange(view.size).reshape(view.shape) % 2
            if name == "valid"
            else np.arange(view.size).reshape(view.shape)
        )
    read = LAYOUT.views(slot, 7, 4, 3)
    assert {name: (array.dtype, array.shape) for name, array in read.items()} == {
        name: (array.dtype, array.shape) for name, array in IMAGES.items()
    }
    assert read["labels"].tolist() == [0, 1, 2]
    assert read["inputs"].flatten().tolist() == list(range(75))
    # Nothing beside these three samples was touched.
    assert not any(array.any() for array in LAYOUT.views(slot, 7, 0, 4).values())


def test_arrays_begin_where_torch_likes_it_and_slots_are_pages() -> None:
    assert [offset % ALIGNMENT for _, offset in LAYOUT.places(7)] == [0, 0, 0]
    assert LAYOUT.slot_bytes(7) % PAGE == 0


def test_bytes_that_lie_tightly_are_the_arrays_one_behind_the_other() -> None:
    data = b"".join(array.tobytes() for array in IMAGES.values())
    assert len(data) == 3 * LAYOUT.row_bytes
    for name, array in LAYOUT.parse(memoryview(data), 3).items():
        assert np.array_equal(array, IMAGES[name])


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="'inputs' of the data source has elements of type <U1"):
        Layout.of({"inputs": np.array(["a"])})


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        (Column("x", "<U4", (1,)), "elements of type '<U4'"),
        (Column("x", "nonsense", (1,)), "elements of type 'nonsense'"),
        (Column("x", "|O", (1,)), "elements of type '|O'"),
        (Column("x", "<f4", (1 << 31,)), "samples of shape"),
        (Column("x", "<f4", (1,) * 9), "samples of shape"),
    ],
)
def test_a_strange_layout_is_not_believed(column: Column, fault: str) -> None:
    assert fault in Layout((column,)).fault()
    assert not LAYOUT.fault()
    assert Layout(()).fault()


def test_a_slot_is_of_whole_batches_where_memory_allows() -> None:
    layout = Layout((Column("inputs", "<f4", (1024,)),))
    assert sizes(layout, 32, 1 << 30) == Sizes(MOST_SLOTS, BATCHES * 32, 32)
    assert sizes(layout, 32, 2 << 20) == Sizes(8, 64, 32)
    # Smaller than a batch: it comes in pieces.
    small = sizes(layout, 512, 1 << 20)
    assert small.rows < 512
    assert small.part == small.rows
    with pytest.raises(DataError, match=r"data.ring_mib \(1\) does not hold 4 samples of 1048576 bytes"):
        sizes(Layout((Column("inputs", "<f4", (1 << 18,)),)), 32, 1 << 20)


@given(st.integers(1, 1 << 22), st.integers(1, 4096), st.integers(1, 256))
def test_the_ring_never_takes_more_than_it_may(row_bytes: int, batch: int, mib: int) -> None:
    layout = Layout((Column("inputs", "|u1", (row_bytes,)),))
    try:
        planned = sizes(layout, batch, mib << 20)
    except DataError:
        assert row_bytes * LEAST_SLOTS + LEAST_SLOTS * PAGE > mib << 20
        return
    assert planned.slots * layout.slot_bytes(planned.rows) <= mib << 20
    assert planned.slots >= LEAST_SLOTS
    assert 1 <= planned.part <= planned.rows
    assert planned.rows % batch == 0 or planned.rows < batch
