"""Results outlive the bench that has found them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.results import Result, Results


def result(arm: str, seed: int, loss: float = 2.0) -> Result:
    return Result(arm, seed, 10, f"{arm}/{seed}", loss, 1e6, 3, 1000, 1.5)


def test_what_is_added_is_found_again_in_another_process(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    first = Results(file)
    assert not len(first)
    first.add(result("k=2", 1))
    first.add(result("k=2", 2))
    again = Results(file)
    assert again.all() == [result("k=2", 1), result("k=2", 2)]
    assert again.find("k=2/2") == result("k=2", 2)
    assert again.find("k=4/1") is None


def test_a_later_result_of_the_same_settings_counts(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    for loss in (2.0, 1.0):
        Results(file).add(result("k=2", 1, loss))
    assert [one.loss for one in Results(file).all()] == [1.0]


def test_without_a_file_they_are_only_remembered() -> None:
    results = Results(None)
    results.add(result("k=2", 1))
    assert len(results) == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"bench": "round"}\n')
    with pytest.raises(ValueError, match="does not hold results of this bench"):
        Results(file)
