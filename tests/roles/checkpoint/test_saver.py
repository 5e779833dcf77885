"""A checkpoint that cannot be loaded is offered no more, and of several mirrors that one gives which holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distqat.averaging import catchup
from distqat.averaging.context import Sibling
from distqat.averaging.outer import OuterState, Part
from distqat.averaging.spans import Shape
from distqat.config import load
from distqat.errors import StateError
from distqat.ids import Endpoint, PeerId, PipelineId, RunId, StageIndex, StepRef
from distqat.model.local import LocalState
from distqat.pipeline.words import AS_IT_IS
from distqat.roles.checkpoint.archive import Stock
from distqat.roles.checkpoint.files import Manifest
from distqat.roles.checkpoint.keeper import Groups
from distqat.roles.checkpoint.saver import LOCAL, OUTER, Loader, Saver, checkpoint_of, fresh, tensors_of
from distqat.roles.checkpoint.words import Checkpoint, Load
from distqat.roles.copies.copy import Copy
from tests.support import run_virtual

SHAPES = (Shape(3, 3),)
STAGE = StageIndex(0)
RUN = RunId("digits", "0" * 32)


def state(value: float, number: int = 4) -> OuterState:
    return OuterState.of([Part.of(torch.full((3,), value), torch.zeros(3))], number)


class Shelf:
    """A keeper in memory."""

    def __init__(self, *states: OuterState) -> None:
        self.states = {checkpoint_of(STAGE, held, None, None): held for held in states}

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return tuple(self.states)

    async def read(self, stage: int, number: int, digest: str) -> tuple[Manifest, Groups]:
        (held,) = [one for one in self.states if one.digest == digest]
        return Manifest(RUN, "", held), {OUTER: tensors_of(self.states[held])}

    def refuse(self, stage: int, digest: str, reason: str) -> None:
        self.states = {one: held for one, held in self.states.items() if one.digest != digest}


class Stage:
    """What a seat is asked for while it loads."""

    def __init__(self) -> None:
        self.index = STAGE
        self.resumed: list[OuterState] = []
        self.residuals: Any = {}
        self.context = SimpleNamespace(shapes=SHAPES, stage=STAGE, work=self.run)
        self.stage = self.averager = self.device = self

    async def run(self, work: Callable[[], Any]) -> Any:
        return work()

    def scatter(self, fragments: Sequence[int], vector: torch.Tensor) -> None:
        pass

    def resume(self, held: OuterState, residuals: Any) -> None:
        self.resumed.append(held)
        self.residuals = residuals


def loader(shelf: Shelf, stage: Stage, *mirrors: str) -> Loader:
    parts: list[Any] = [shelf, stage, {PeerId(name): Endpoint(name, 1) for name in mirrors}]
    return Loader(*parts)


def test_one_that_does_not_fit_the_stage_is_offered_no_more() -> None:
    shelf, stage = Shelf(state(1.0)), Stage()
    stage.context.shapes = (Shape(4, 4),)
    with pytest.raises(StateError, match=r"cannot be loaded: .* is of another stage"):
        asyncio.run(loader(shelf, stage).take(Load(4, fresh(state(1.0)).digest)))
    assert not shelf.checkpoints
    assert not stage.resumed


def test_mirrors_are_asked_until_one_gives_what_was_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first has gone on, the second is out of reach.
    gives = {"a": state(9.0, 7), "c": state(1.0)}

    async def fetch(context: object, donors: Sequence[Sibling], least: int = 0) -> OuterState:
        (donor,) = donors
        if donor.peer not in gives:
            raise StateError(f"no donor {donor.peer}")
        return gives[donor.peer]

    monkeypatch.setattr(catchup, "fetch", fetch)
    stage, order = Stage(), Load(4, fresh(state(1.0)).digest)
    asyncio.run(loader(Shelf(), stage, "a", "b", "c").take(order))
    assert [held.digest for held in stage.resumed] == [order.digest]
    with pytest.raises(StateError, match="a gives another state of round 7; no donor b"):
        asyncio.run(loader(Shelf(), Stage(), "a", "b").take(order))
    with pytest.raises(StateError, match="there is none"):
        asyncio.run(loader(Shelf(), Stage()).take(order))


def test_what_eager_rounds_and_lossy_codecs_go_on_from_is_saved_and_loaded() -> None:
    held, tensor = state(1.0), torch.full((3,), 0.5)
    saved = SimpleNamespace(momenta=lambda: {0: tensor}, last_share=0.25)
    feedback = SimpleNamespace(save=lambda: {0: 2 * tensor})
    seat: Any = SimpleNamespace(
        stage=SimpleNamespace(index=STAGE),
        averager=SimpleNamespace(outer=held, committed=SimpleNamespace(feedback=feedback)),
        pipeline=PipelineId("p"),
        rounds=SimpleNamespace(handover=saved),
    )
    parts: list[Any] = [load().run_config(), "me", seat, None, lambda: AS_IT_IS]
    copy = Copy(LocalState(8, {}), held.digest, (16,), 2, is_ordered=True)
    manifest, groups = Saver(*parts)._packed(held, copy)
    assert manifest.facts["share"] == 0.25

    async def read(stage: int, number: int, digest: str) -> tuple[Manifest, Groups]:
        return manifest, {name: tensors for name, tensors in groups.items() if name != LOCAL}

    stage, shelf, loaded = Stage(), Shelf(held), list[Any]()
    shelf.read = read  # type: ignore[method-assign]
    given: Any = stage
    given.rounds = SimpleNamespace(
        handover=SimpleNamespace(resume=lambda *what: loaded.append(what)), resume=lambda *what: loaded.append(what)
    )
    asyncio.run(loader(shelf, stage).take(Load(4, fresh(held).digest, with_local=True)))
    (momenta, share), what = loaded
    assert share == 0.25
    assert torch.equal(momenta[0], tensor)
    assert what == ([16], 2, True)
    assert torch.equal(stage.residuals[0], 2 * tensor)


def test_a_mirror_gives_the_checkpoint_that_is_asked_for_of_two_with_the_same_round() -> None:
    followed, courses = state(5.0, 8), (state(1.0), state(2.0))
    parts: list[Any] = [Stage().context, SimpleNamespace(outer=followed), Shelf(*courses)]
    parts[0].run = RUN
    stock = Stock(*parts)

    async def scenario() -> None:
        for held in courses:
            await stock.choose(fresh(held).digest)
            assert stock.outer is not None
            assert stock.outer.digest == fresh(held).digest
        await stock.choose("of a state that it does not have")
        assert stock.outer is followed

    asyncio.run(scenario())


def test_what_an_heir_is_handed_over_is_no_reason_for_a_checkpoint() -> None:
    """It comes after the seat was taken; what counts is how far later rounds are from it."""

    async def scenario() -> None:
        def committed(number: int) -> OuterState:
            return OuterState.of(state(1.0).parts, number, (), (StepRef(PipelineId("p"), number),))

        averager: Any = SimpleNamespace(outer=None)
        seat: Any = SimpleNamespace(
            stage=SimpleNamespace(index=STAGE),
            averager=averager,
            arrived=asyncio.Event(),
            rounds=SimpleNamespace(on_rest=None),
        )
        asked: list[int] = []

        def is_busy(stage: int) -> bool:
            asked.append(averager.outer.round)
            return True

        config = load().run_config()
        every = config.checkpoint.model_copy(update={"steps": 100})
        keeper = SimpleNamespace(is_busy=is_busy)
        parts: list[Any] = [config.model_copy(update={"checkpoint": every}), "me", seat, keeper, lambda: AS_IT_IS]
        saver = Saver(*parts)
        beginning = asyncio.ensure_future(saver.begin())
        await asyncio.sleep(1.0)
        averager.outer = committed(150)
        seat.arrived.set()
        await beginning
        assert seat.rounds.on_rest == saver.look
        for number in (151, 199, 200, 201):
            averager.outer = committed(number)
            await saver.look(False)
        assert asked == [200]

    run_virtual(scenario())
