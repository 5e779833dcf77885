"""A code is the sum of its slices, whatever the grid and the bits of a slice."""

from __future__ import annotations

import pytest
import torch

from distqat.model.quant.grid import Grid
from distqat.model.quant.slices import Hardware, joined, sliced
from tests.model.quant import arithmetic


@pytest.mark.parametrize("kind", [torch.float32, torch.int8, torch.int32])
@pytest.mark.parametrize("is_signed", [False, True])
def test_every_code_is_cut_as_its_bits_are_and_joined_again(kind: torch.dtype, is_signed: bool) -> None:
    for bits in range(2, 9):
        grid = Grid(bits, is_signed)
        wide = torch.int16 if kind == torch.int8 else kind
        codes = torch.arange(grid.lowest, grid.highest + 1).to(wide)
        for slice_bits in range(9):
            hardware = Hardware(slice_bits)
            slices = sliced(codes, grid, hardware)
            assert slices.dtype == wide
            assert slices.T.tolist() == [arithmetic.slices_of(int(code), grid, hardware) for code in codes]
            assert torch.equal(joined(slices, hardware), codes)


@pytest.mark.parametrize("is_signed", [False, True])
def test_only_the_most_significant_slice_has_a_sign_and_it_has_the_bits_that_are_left(is_signed: bool) -> None:
    for bits in range(2, 9):
        grid = Grid(bits, is_signed)
        codes = torch.arange(grid.lowest, grid.highest + 1)
        for slice_bits in range(1, 9):
            hardware = Hardware(slice_bits)
            grids, slices = hardware.slice_grids(grid), sliced(codes, grid, hardware)
            assert len(grids) == len(slices) == hardware.num_slices(grid)
            assert [own.is_signed for own in grids] == [False] * (len(grids) - 1) + [is_signed]
            assert sum(own.bits for own in grids) == bits
            found = [(int(own.min()), int(own.max())) for own in slices]
            assert found == [(own.lowest, own.highest) for own in grids]
