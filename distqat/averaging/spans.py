"""Where the elements of a round's vector come from: fragment by fragment, parameters first, then buffers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distqat.averaging.phases import Phase

BLOCK = 1 << 18
"""Elements that go through all steps of a round's arithmetic before the next do; a multiple of every codec's block.

Smaller ones pay more for calls: with 64 Ki a contribution takes half as long again.
"""


@dataclass(frozen=True)
class Shape:
    """How long the vectors of a fragment are."""

    num_parameters: int
    num_elements: int
    """Parameters and buffers."""


@dataclass(frozen=True)
class Span:
    """Neighbouring elements of one kind: `begin` to `end` of the round's vector."""

    begin: int
    end: int
    fragment: int
    offset: int
    """Of its first element in the vector of the fragment."""
    is_parameter: bool

    @property
    def within(self) -> slice:
        """Its elements in the vector of the fragment."""
        return slice(self.offset, self.offset + self.end - self.begin)


def spans(shapes: Sequence[Shape], how: Phase) -> tuple[Span, ...]:
    """The parameters and the buffers of every fragment of the round, in their order; none is empty."""
    found: list[Span] = []
    at = 0
    for fragment in how.fragments:
        shape = shapes[fragment]
        for begin, end, is_parameter in (
            (0, shape.num_parameters, True),
            (shape.num_parameters, shape.num_elements, False),
        ):
            if end > begin:
                found.append(Span(at + begin, at + end, fragment, begin, is_parameter))
        at += shape.num_elements
    return tuple(found)


def cut(whole: Sequence[Span], begin: int, end: int, most: int) -> Iterator[Span]:
    """What lies between two elements of the round's vector, in pieces of at most `most` elements."""
    for span in whole:
        for at in range(max(span.begin, begin), min(span.end, end), most):
            until = min(at + most, span.end, end)
            yield Span(at, until, span.fragment, span.offset + at - span.begin, span.is_parameter)
