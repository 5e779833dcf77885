from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.averaging import spans
from distqat.averaging.spans import Shape, Span
from tests.averaging.vectors import phase_of


@st.composite
def shapes(draw: st.DrawFn) -> list[Shape]:
    pairs = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5))
    return [Shape(parameters, parameters + buffers) for parameters, buffers in pairs]


def test_parameters_first_then_buffers_of_each_fragment() -> None:
    found = spans.spans([Shape(3, 5), Shape(0, 2), Shape(4, 4)], phase_of(False, 0, 2))
    assert found == (Span(0, 3, 0, 0, True), Span(3, 5, 0, 3, False), Span(5, 9, 2, 0, True))
    assert found[1].within == slice(3, 5)


@settings(deadline=None)
@given(shapes(), st.integers(0, 60), st.integers(0, 60), st.integers(1, 7), st.data())
def test_every_element_once_from_where_it_lies(
    fragments: list[Shape], first: int, second: int, most: int, data: st.DataObject
) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(fragments) - 1), min_size=1)))
    whole = spans.spans(fragments, phase_of(True, *chosen))
    # Each element of the round's vector, one by one: where it lies, and whether it is a parameter.
    places = [
        (index, offset, offset < fragments[index].num_parameters)
        for index in chosen
        for offset in range(fragments[index].num_elements)
    ]
    begin, end = min(first, second), max(first, second)
    found = list(spans.cut(whole, begin, end, most))
    assert all(0 < span.end - span.begin <= most for span in found)
    covered = [at for span in found for at in range(span.begin, span.end)]
    assert covered == list(range(begin, min(end, len(places))))
    for span in found:
        for step, at in enumerate(range(span.begin, span.end)):
            assert places[at] == (span.fragment, span.offset + step, span.is_parameter)
