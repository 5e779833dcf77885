"""The picture has a mark for each way, in its place."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import plot
from bench.arms import FLOORS, SYNCHRONOUS, Way
from bench.plot import dots, levels, svg
from bench.results import Result, Results

SVG = "{http://www.w3.org/2000/svg}"


def result(name: str, seed: int, loss: float, megabytes: float, steps: int = 1000) -> Result:
    return Result(name, seed, steps, f"{name}/{seed}/{steps}", loss, megabytes * 1e6, 32, 135_000, 30.0)


def found() -> list[Result]:
    return [
        *(result(SYNCHRONOUS.name, seed, 1.8, 0.0) for seed in (1, 2)),
        *(result(FLOORS[4].name, seed, 2.1, 0.0) for seed in (1, 2)),
        result(str(Way(4)), 1, 1.90, 100.0),
        result(str(Way(4)), 2, 1.92, 100.0),
        result(str(Way(4, "int8")), 1, 1.91, 26.0),
        result(str(Way(2, "int4", True)), 1, 1.85, 10.0),
        result(str(Way(4)), 1, 9.9, 1.0, steps=75),
    ]


def test_seeds_are_averaged_and_shorter_runs_left_out() -> None:
    made = {(dot.kind, dot.is_hollow): dot for dot in dots(found())}
    assert made["none", False].loss == pytest.approx(1.91)
    assert made["none", False].megabytes == 100.0
    assert made["int4", True].is_square
    # Gradients in fp32 at each step, sent and received, of 2 and of 4 replicas.
    assert made["gradients", True].megabytes == pytest.approx(1000 * 2 * 4 * 0.135)
    assert made["gradients", False].megabytes == pytest.approx(1000 * 3 * 4 * 0.135)
    assert {level.label: level.loss for level in levels(found())} == {"synchronous": 1.8, "1/4 of the tokens": 2.1}


def test_less_loss_is_lower_and_fewer_bytes_are_further_left() -> None:
    tree = ElementTree.fromstring(svg(list(dots(found())), []))
    inside = [mark for mark in tree.iter() if mark.tag in (f"{SVG}circle", f"{SVG}rect") and mark.get("stroke-width")]
    exact, int8, *_ = [mark for mark in inside if mark.tag == f"{SVG}circle"]
    assert float(exact.get("cx", "")) > float(int8.get("cx", ""))
    # On a screen y grows downwards.
    assert float(exact.get("cy", "")) == pytest.approx(float(int8.get("cy", "")))
    for mark in inside:
        x = float(mark.get("cx") or mark.get("x") or "nan")
        assert 0 <= x <= plot.WIDTH


def test_the_command_draws_what_a_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, picture = tmp_path / "results.jsonl", tmp_path / "diloco.svg"
    results = Results(file)
    for one in found():
        results.add(one)
    monkeypatch.setattr("sys.argv", ["plot", str(file), str(picture)])
    plot.main()
    texts = [text.text for text in ElementTree.parse(picture).iter(f"{SVG}text")]
    assert "MB sent and received by a replica" in texts
    assert {"int8", "int4", "synchronous"} <= set(texts)
