"""A batch into microbatches. Pure."""

from __future__ import annotations

from distqat.errors import DataError


def split(samples: int, microbatches: int) -> list[range]:
    """Cut `samples` into ranges in index order, as equal as possible, the larger ones first.

    A batch with fewer samples than microbatches gives one microbatch a sample. Raises DataError for an empty batch.
    """
    if samples < 1 or microbatches < 1:
        raise DataError(f"a batch of {samples} samples cannot be split into {microbatches} microbatches")
    pieces = min(samples, microbatches)
    size, larger = divmod(samples, pieces)
    ranges: list[range] = []
    begin = 0
    for index in range(pieces):
        end = begin + size + (index < larger)
        ranges.append(range(begin, end))
        begin = end
    return ranges
