"""Wherever a hop breaks: every step is applied once by every stage, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

import pytest
import torch

from distqat.model.device import Device
from distqat.wire_sections import LearnedCodes
from tests.pipeline.courses import Course, Newcomer, Result, run_course
from tests.pipeline.cuts import Cut, Point
from tests.pipeline.swarm import GPT, IMAGES, RESNET, Recipe, run_plain

T = TypeVar("T")

PLAIN = Course("plain", steps=2)
CLIP = {"clip_norm": 0.5, "schedule": "cosine"}
LEARNED = {"activations": "learned", "learned": LearnedCodes(bits=4), "gradients": "int8"}
CHUNKS = Recipe("mlp", IMAGES, "cv", {"hidden": 2048, "depth": 1}, samples=320)

COURSES = [
    Course("one stage", stages=1),
    Course("running statistics", RESNET, stages=2, microbatches=3),
    Course("recomputed, with dropout", GPT, settings={"pipeline": {"recompute": ["gpt/0", "gpt/1"]}}),
    Course("payloads in chunks", CHUNKS, stages=2, microbatches=2, steps=2),
    Course("clipped, under a schedule", settings={"optimizer": CLIP}),
    Course("bf16", settings={"train": {"precision": "bf16"}}),
    Course("fp16, a step skipped", settings={"train": {"precision": "fp16"}, "optimizer": CLIP}, spike=30.0),
    Course("learned codes, recomputed", GPT, settings={"wire": LEARNED, "pipeline": {"recompute": ["gpt/0"]}}),
    Course("int8 and zstd", GPT, settings={"wire": {"activations": "int8", "gradients": "int8", "compression": "on"}}),
]
"""Each with what a break could lose or double."""


class Track:
    """A course, its run without cuts, and a device."""

    def __init__(self, course: Course, device: Device, whole: Result) -> None:
        self.course = course
        self.device = device
        self.whole = whole

    def cut(self, point: Point, *more: str) -> Cut:
        """Breaks the point's own hop, and those named."""
        return Cut(point, (self.course.hop_of(point), *more))

    async def check(self, *plan: Cut, must_come: bool = True) -> Result:
        """Whatever is cut, parameters and counts are those of the run without cuts."""
        name = f"{self.course}: {', then '.join(map(str, plan))}"
        found = await run_course(self.course, self.device, plan)
        assert found.equals(self.whole), f"{name}: other parameters"
        assert found.counts == self.whole.counts, f"{name}: counted {found.counts}"
        must_come = must_come and all(cut.at.is_certain for cut in plan)
        assert found.scissors.is_done or not must_come, f"{name}: did not come"
        return found


def on_track(course: Course, work: Callable[[Track], Awaitable[T]], timeout: float = 100.0) -> T:
    async def scenario() -> T:
        async with Device.open("cpu", threads=1) as device:
            whole = await run_course(course, device)
            samples = course.recipe.samples
            assert whole.counts == [[(step, samples) for step in range(1, course.steps + 1)]] * course.stages
            assert not whole.breaks
            return await work(Track(course, device, whole))

    return run_plain(scenario(), timeout)


async def each(points: Sequence[Point], track: Track) -> None:
    breaks = 0
    for point in points:
        found = await track.check(track.cut(point))
        breaks += found.breaks
    # Only a cut in the last moments of a route is no break.
    assert breaks >= len(points) / 2


@pytest.mark.parametrize("place", ["trainer>expert0", "expert0>expert1", "expert1>expert2", "stage"])
def test_a_cut_at_any_point_of_a_step_loses_nothing_and_counts_nothing_twice(place: str) -> None:
    async def work(track: Track) -> None:
        # Of the opening, of the second step, and of the commits before and after it.
        points = [p for p in track.whole.scissors.seen if p.where.startswith(place) and is_of_second_step(p)]
        assert len(points) >= 6 * track.course.microbatches
        await each(points, track)

    on_track(PLAIN, work)


def is_of_second_step(point: Point) -> bool:
    word, _, step = point.what.partition(" ")
    return (not step and point.turn < 3) or step.startswith("2") or word.lower() in ("commit", "committed")


@pytest.mark.parametrize("course", COURSES, ids=str)
def test_cuts_of_other_courses(course: Course) -> None:
    async def work(track: Track) -> None:
        seen, numbers = track.whole.scissors.seen, random.Random(course.name)
        # Most of what they differ in shows where a step ends.
        ends = [point for point in seen if point.what.lower().startswith("commit")]
        await each([*numbers.sample(ends, 3), *numbers.sample(seen, 3)], track)

    on_track(course, work)


def test_the_middle_step_in_fp16_is_skipped_and_none_else() -> None:
    (course,) = (course for course in COURSES if course.spike != 1.0)

    async def work(track: Track) -> list[bool]:
        runs = [await run_course(course.shorter(steps), track.device) for steps in (1, 2, 3)]
        begin = torch.cat([course.stage(index).flatten() for index in range(course.stages)])
        return [torch.equal(*pair) for pair in pairwise([begin, *(torch.cat(run.states) for run in runs)])]

    assert on_track(course, work) == [False, True, False]


@pytest.mark.soak
@pytest.mark.parametrize("course", [PLAIN, *COURSES], ids=str)
def test_a_cut_at_any_point_at_all(course: Course) -> None:
    async def work(track: Track) -> None:
        await each(track.whole.scissors.seen, track)

    on_track(course, work, 3000.0)


@pytest.mark.parametrize("seed", range(2))
def test_two_hops_at_once_and_another_while_the_route_opens_again(seed: int) -> None:
    on_track(PLAIN, partial(cut_twice, seed, 4))


@pytest.mark.soak
@pytest.mark.parametrize("course", [PLAIN, *COURSES], ids=str)
@pytest.mark.parametrize("seed", range(10, 20))
def test_two_hops_at_once_and_more_in_all_courses(course: Course, seed: int) -> None:
    on_track(course, partial(cut_twice, seed, 60), 3000.0)


async def cut_twice(seed: int, trials: int, track: Track) -> None:
    numbers = random.Random(seed)
    for _ in range(trials):
        first = track.cut(numbers.choice(track.whole.scissors.seen), numbers.choice(track.course.hops))
        found = await track.check(first)
        # What went by after the first cut, if it came: the old route ends, the new one opens, the replay.
        after = [point for mark in found.scissors.marks for point in found.scissors.seen[mark:]]
        second = track.cut(numbers.choice(after or track.whole.scissors.seen))
        await track.check(first, second, must_come=False)


# Momenta stay with whoever had them, so the optimizer has none here.
SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False, "clip_norm": 0.5}
NEWCOMERS = [
    Course("plain sgd", settings={"optimizer": SGD}),
    Course("fp16 sgd", settings={"optimizer": SGD, "train": {"precision": "fp16"}}, spike=30.0),
]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_newcomer_takes_the_seat_after_a_break(index: int) -> None:
    course = NEWCOMERS[-1]

    async def work(track: Track) -> None:
        seen, numbers = track.whole.scissors.seen, random.Random(f"{index} {course}")
        ends = [point for point in seen if point.what.lower().startswith("commit")]
        await seat_newcomers(track, index, [*numbers.sample(ends, 3), *numbers.sample(seen, 3)])

    on_track(course, work)


@pytest.mark.soak
@pytest.mark.parametrize("course", NEWCOMERS, ids=str)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_newcomer_takes_the_seat_after_a_break_anywhere(index: int, course: Course) -> None:
    async def work(track: Track) -> None:
        await seat_newcomers(track, index, track.whole.scissors.seen)

    on_track(course, work, 3000.0)


async def seat_newcomers(track: Track, index: int, points: Sequence[Point]) -> None:
    course, device = track.course, track.device
    shorter = [await run_course(course.shorter(steps), device) for steps in range(1, course.steps + 1)]
    states = [course.stage(index).flatten(), *(run.states[index] for run in shorter)]
    for point in points:
        found = await run_course(course, device, [track.cut(point)], Newcomer(index, states))
        assert found.equals(track.whole), f"{point}, a newcomer in stage {index}: other parameters"
        for counts, whole in zip(found.counts, track.whole.counts, strict=True):
            # The newcomer has counted what came after it took the seat, in order; the others everything.
            assert counts == whole[len(whole) - len(counts) :], f"{point}, a newcomer in stage {index}"
            assert counts == whole or counts is found.counts[index]
