from __future__ import annotations

import inspect

import pytest

from distqat import errors
from distqat.errors import DistqatError

DEFINED = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
ALL: list[type[DistqatError]] = [kind for kind in DEFINED if issubclass(kind, DistqatError)]


def test_one_tree_with_a_meaning_for_each() -> None:
    assert ALL == DEFINED
    assert all(kind.__doc__ for kind in ALL)


@pytest.mark.parametrize("kind", ALL)
def test_found_by_name(kind: type[DistqatError]) -> None:
    assert errors.find(kind.__name__) is kind


def test_only_our_own_are_found() -> None:
    assert errors.find("ValueError") is None
    assert errors.find("") is None


def test_the_reason_is_the_message() -> None:
    assert errors.RouteError("hop to stage 1 broke").reason == "hop to stage 1 broke"
    assert errors.RouteError().reason == "RouteError"


def test_trying_again_is_a_property_of_the_class() -> None:
    assert {kind.__name__ for kind in ALL if kind.retriable} == {
        "UnreachableError",
        "GoneError",
        "DeadlineError",
        "OverloadedError",
        "RouteError",
        "RoundError",
        "StateError",
    }
