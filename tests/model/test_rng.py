from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from distqat.model import rng

CPU = torch.device("cpu")


def draw() -> tuple[float, float]:
    return float(torch.rand(())), float(np.random.rand())


def test_borrowed_generators_are_seeded_and_put_back_as_they_were() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    expected = [draw(), draw()]
    torch.manual_seed(1)
    np.random.seed(1)
    first = draw()
    with rng.borrowed(CPU, 7):
        borrowed = draw()
    with pytest.raises(ZeroDivisionError), rng.borrowed(CPU, 8):
        assert draw()[0] / 0
    assert [first, draw()] == expected
    with rng.borrowed(CPU, 7):
        assert draw() == borrowed
    with rng.borrowed(CPU, 8):
        assert draw() != borrowed


def test_threads_that_borrow_wait_for_each_other() -> None:
    is_inside, may_go_on = threading.Event(), threading.Event()
    drawn: dict[str, list[tuple[float, float]]] = {"first": [], "second": []}

    def first() -> None:
        with rng.borrowed(CPU, 1):
            drawn["first"].append(draw())
            is_inside.set()
            assert may_go_on.wait(60)
            drawn["first"].append(draw())

    def second() -> None:
        with rng.borrowed(CPU, 2):
            drawn["second"] += [draw(), draw()]

    threads = [threading.Thread(target=work) for work in (first, second)]
    threads[0].start()
    assert is_inside.wait(60)
    threads[1].start()
    # It cannot have drawn, however long it has had.
    threads[1].join(0.05)
    assert not drawn["second"]
    may_go_on.set()
    for thread in threads:
        thread.join(60)
    for seed, name in ((1, "first"), (2, "second")):
        with rng.borrowed(CPU, seed):
            assert drawn[name] == [draw(), draw()]


def test_derived_seeds_differ_in_each_part_of_the_path() -> None:
    paths: list[tuple[int | str, ...]] = [("a", 1), ("a", "1"), ("a", 1, 0), ("b", 1), ("a", 2)]
    seeds = {rng.derive(7, *path) for path in paths} | {rng.derive(8, "a", 1)}
    assert len(seeds) == len(paths) + 1
    assert all(0 <= seed < 1 << 63 for seed in seeds)
