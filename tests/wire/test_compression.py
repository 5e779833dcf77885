"""When zstd is on: links and data with known numbers, and no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from distqat.wire.compression import LEVELS, MIN_BYTES, PROBE_EVERY, Compression, Mode, Trial

FAST, BEST = LEVELS
SIZE = 1 << 20


@dataclass
class World:
    """Data of these ratios, a processor of these speeds (bytes per second), a link of this rate."""

    link: float
    ratios: dict[int, float]
    compress: dict[int, float]
    decompress: float = 1.5e9

    def run(self, compression: Compression, tensors: int) -> list[int | None]:
        """Send tensors; the levels they were compressed with."""
        levels = []
        compression.link_rate = self.link
        for _ in range(tensors):
            plan = compression.plan(SIZE)
            if plan.probe:
                compression.tried(self.trial(level, 1 << 18, probe=True) for level in plan.probe)
                plan = compression.plan(SIZE)
            if plan.level is not None:
                compression.tried([self.trial(plan.level, SIZE)])
            levels.append(plan.level)
        return levels

    def trial(self, level: int, raw: int, probe: bool = False) -> Trial:
        small = round(raw * self.ratios[level])
        return Trial(level, raw, small, raw / self.compress[level], raw / self.decompress if probe else None)

    def seconds(self, level: int | None) -> float:
        """From tensor to tensor."""
        if level is None:
            return SIZE / self.link
        return SIZE * (self.ratios[level] / self.link + 1 / self.compress[level] + 1 / self.decompress)


SPEEDS = {FAST: 1.5e9, BEST: 0.6e9}
RELU = World(0.0, {FAST: 0.73, BEST: 0.56}, SPEEDS)
CODES = World(0.0, {FAST: 1.0, BEST: 1.0}, SPEEDS)
MBIT = 1e6 / 8


@pytest.mark.parametrize(
    ("world", "mbit", "on"),
    [
        (RELU, 20, True),
        (RELU, 100, True),
        (RELU, 8000, False),
        (CODES, 20, False),
        (CODES, 100, False),
        (CODES, 8000, False),
    ],
)
def test_it_is_on_where_that_is_faster(world: World, mbit: float, on: bool) -> None:
    world, compression = replace(world, link=mbit * MBIT), Compression()
    levels = world.run(compression, 200)
    assert compression.is_on is on
    assert all((level is not None) is on for level in levels[100:])
    # Not only what it says: nothing else would have been faster by much.
    assert world.seconds(levels[-1]) <= 1.1 * min(world.seconds(level) for level in (None, *LEVELS))


def test_the_level_is_the_one_that_is_fastest_on_this_link() -> None:
    slow, fast = replace(RELU, link=20 * MBIT), replace(RELU, link=2400 * MBIT, ratios={FAST: 0.2, BEST: 0.14})
    for world, level in ((slow, BEST), (fast, FAST)):
        compression = Compression()
        assert world.run(compression, 200)[-1] == level
        assert world.seconds(level) == min(world.seconds(other) for other in (None, *LEVELS))


def test_nothing_is_tried_while_the_link_is_not_known() -> None:
    compression = Compression()
    assert [compression.plan(SIZE) for _ in range(3 * PROBE_EVERY)].count(compression.plan(SIZE)) == 3 * PROBE_EVERY
    assert not compression.plan(SIZE).probe
    assert compression.plan(SIZE).level is None


def test_looking_costs_little() -> None:
    world, compression = replace(CODES, link=20 * MBIT), Compression()
    compression.link_rate = world.link
    probes = 0
    for _ in range(1000):
        plan = compression.plan(SIZE)
        probes += bool(plan.probe)
        if plan.probe:
            compression.tried(world.trial(level, 1 << 18, probe=True) for level in plan.probe)
    assert 1000 / PROBE_EVERY / 2 <= probes <= 1000 / PROBE_EVERY


def test_it_follows_data_that_changes_both_ways() -> None:
    world, compression = replace(CODES, link=20 * MBIT), Compression()
    world.run(compression, 100)
    assert not compression.is_on
    world.ratios = RELU.ratios
    world.run(compression, 8 * PROBE_EVERY)
    assert compression.is_on
    world.ratios = CODES.ratios
    world.run(compression, 20)
    assert not compression.is_on


def test_it_follows_a_link_that_changes_both_ways() -> None:
    world, compression = replace(RELU, link=8000 * MBIT), Compression()
    world.run(compression, 3000)
    assert not compression.is_on
    world.link = 20 * MBIT
    world.run(compression, 50)
    assert compression.is_on
    world.link = 8000 * MBIT
    world.run(compression, 2000)
    assert not compression.is_on


def test_it_does_not_waver_at_the_border() -> None:
    """Ratios around 0.965 on a slow link: between what turns it on and what turns it off."""
    for first, expected in ((0.5, True), (1.0, False)):
        world, compression = replace(RELU, link=20 * MBIT, ratios={FAST: 1.0, BEST: first}), Compression()
        world.run(compression, 100)
        for index in range(200):
            world.ratios = {FAST: 1.0, BEST: 0.95 + 0.02 * (index % 2)}
            world.run(compression, 1)
            assert compression.is_on is expected


@pytest.mark.parametrize(("mode", "level"), [("on", BEST), ("off", None)])
def test_a_mode_that_is_set_stays(mode: Mode, level: int | None) -> None:
    for link in (20 * MBIT, 8000 * MBIT):
        compression = Compression(mode)
        levels = replace(CODES, link=link).run(compression, 100)
        assert {chosen is None for chosen in levels} == {level is None}
        assert compression.is_on is (mode == "on")


def test_small_tensors_travel_as_they_are() -> None:
    for mode in ("auto", "on", "off"):
        compression = Compression(mode)
        assert not compression.is_wanted(MIN_BYTES - 1)
        assert compression.plan(MIN_BYTES - 1).level is None
        assert not compression.plan(MIN_BYTES - 1).probe


def test_what_is_known_can_be_seen() -> None:
    world, compression = replace(RELU, link=20 * MBIT), Compression()
    state = compression.statistics()
    assert (state.is_on, state.ratio, state.compress_rate, state.link_rate) == (False, 1.0, 0.0, 0.0)
    assert repr(compression) == "<Compression auto: off, link unknown>"
    world.run(compression, 100)
    state = compression.statistics()
    assert (state.mode, state.is_on, state.level) == ("auto", True, BEST)
    assert state.ratio == pytest.approx(0.56, abs=0.01)
    assert state.compress_rate == pytest.approx(0.6e9)
    assert state.decompress_rate == pytest.approx(1.5e9)
    assert state.link_rate == pytest.approx(2.5e6, rel=0.01)
    assert repr(compression) == "<Compression auto: on, level 1, ratio 0.56, link 2.5 MB/s>"
