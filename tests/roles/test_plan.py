"""Who hosts what: each rule by itself, and the plan against a greedy oracle on random swarms."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex
from distqat.roles.plan import Action, Assign, Dissolve, ExpertView, Follow, Form, Pipeline, View, missing, plan
from distqat.sections import PlanSection

SECTION = PlanSection()
ALICE, BOB, CAROL, DAVE = (PeerId(name) for name in ("alice", "bob", "carol", "dave"))
TOM = PeerId("tom")


def expert(peer: PeerId, stage: int | None = None, ready: bool = True, pinned: bool = False) -> ExpertView:
    return ExpertView(peer, Endpoint(peer, 1), None if stage is None else StageIndex(stage), ready, pinned)


def view(*experts: ExpertView, stages: int = 2, pipelines: tuple[Pipeline, ...] = ()) -> View:
    return View(stages, experts, (TOM,), pipelines)


def pipeline(name: str, *peers: PeerId, trainer: PeerId = TOM) -> Pipeline:
    route = tuple(Seat(peer, Endpoint(peer, 1), StageIndex(index)) for index, peer in enumerate(peers))
    return Pipeline(PipelineId(name), 1, route, trainer)


def carry_out(view: View, actions: list[Action]) -> View:
    """What the swarm looks like when every action has succeeded and every assigned expert is ready."""
    for action in actions:
        match action:
            case Assign(peer, stage):
                experts = tuple(replace(e, stage=stage, is_ready=True) if e.peer == peer else e for e in view.experts)
                view = replace(view, experts=experts, moved={**view.moved, peer: 0.0})
            case Follow(peer, stage):
                experts = tuple(replace(e, follows=stage, is_warm=True) if e.peer == peer else e for e in view.experts)
                view = replace(view, experts=experts)
            case Form(name, route, trainer):
                name = name or PipelineId(f"p{len(view.pipelines)}-{len(route)}-{route[0].peer}")
                rest = tuple(line for line in view.pipelines if line.id != name)
                view = replace(view, pipelines=(*rest, Pipeline(name, 1, route, trainer)))
            case Dissolve(name):
                view = replace(view, pipelines=tuple(line for line in view.pipelines if line.id != name))
    return view


def settle(view: View, section: PlanSection = SECTION) -> View:
    """Plan and carry out until there is nothing more to do; fails if that never comes."""
    for wave in range(1000):
        actions = list(plan(view, section, now=100.0 * wave))
        if not actions:
            return view
        view = carry_out(view, actions)
    raise AssertionError("the plan does not come to rest")


def test_spares_take_the_missing_stages() -> None:
    actions = plan(view(expert(ALICE), expert(BOB)), SECTION, 0.0)
    assert [(a.peer, a.stage) for a in actions if isinstance(a, Assign)] == [(ALICE, 0), (BOB, 1)]


def test_a_lone_spare_begins_and_the_rest_is_named() -> None:
    lone = view(expert(ALICE))
    assert [type(a) for a in plan(lone, SECTION, 0.0)] == [Assign]
    assert missing(carry_out(lone, list(plan(lone, SECTION, 0.0))), 64) == "waiting: stage 1 of 2 has no expert"


def test_a_spare_that_completes_nothing_stays_a_spare() -> None:
    lines = (pipeline("p1", ALICE, BOB),)
    one = view(expert(ALICE, 0), expert(BOB, 1), expert(CAROL), pipelines=lines)
    assert not plan(one, PlanSection(followers=False), 0.0)
    assert [type(a) for a in plan(one, SECTION, 0.0)] == [Follow]


def test_ready_experts_of_every_stage_form_a_pipeline() -> None:
    (form,) = plan(view(expert(ALICE, 0), expert(BOB, 1)), SECTION, 0.0)
    assert isinstance(form, Form)
    assert form.id is None
    assert [seat.peer for seat in form.route] == [ALICE, BOB]


def test_an_expert_that_is_not_ready_is_waited_for() -> None:
    waiting = view(expert(ALICE, 0), expert(BOB, 1, ready=False))
    assert not plan(waiting, SECTION, 0.0)
    assert missing(waiting, 64) == "waiting: stage 1 on bob is not ready yet"


def test_no_more_pipelines_than_asked_for() -> None:
    lines = (pipeline("p1", ALICE, BOB),)
    four = view(expert(ALICE, 0), expert(BOB, 1), expert(CAROL, 0), expert(DAVE, 1), pipelines=lines)
    assert not plan(four, PlanSection(max_pipelines=1), 0.0)
    assert [type(a) for a in plan(four, PlanSection(max_pipelines=2), 0.0)] == [Form]


def test_a_lost_expert_is_replaced_by_a_ready_one_of_its_stage() -> None:
    lines = (pipeline("p1", ALICE, BOB),)
    (form,) = plan(view(expert(ALICE, 0), expert(CAROL, 1), pipelines=lines), SECTION, 0.0)
    assert isinstance(form, Form)
    assert form.id == "p1"
    assert [seat.peer for seat in form.route] == [ALICE, CAROL]
    assert "bob" in form.why


def test_a_pipeline_that_cannot_be_mended_is_dissolved_and_its_peers_regroup() -> None:
    lines = (pipeline("p1", ALICE, BOB), pipeline("p2", CAROL, DAVE))
    broken = view(expert(ALICE, 0), expert(DAVE, 1), pipelines=lines)
    actions = plan(broken, SECTION, 0.0)
    # One of the two takes over the survivor of the other, or both end; in any case one whole pipeline comes of it.
    rested = settle(carry_out(broken, list(actions)))
    assert [[seat.peer for seat in line.route] for line in rested.pipelines] == [[ALICE, DAVE]]


def test_two_experts_of_one_stage_and_none_of_the_other_share_out() -> None:
    rested = settle(view(expert(ALICE, 0), expert(BOB, 0)))
    assert len(rested.pipelines) == 1


def test_a_spare_and_a_surplus_expert_complete_a_pipeline_together() -> None:
    lines = (pipeline("p1", ALICE, BOB, CAROL),)
    extra = (expert(DAVE, 0), expert(PeerId("erin"), 0), expert(PeerId("fred")))
    seats = (expert(ALICE, 0), expert(BOB, 1), expert(CAROL, 2), *extra)
    assert len(settle(view(*seats, stages=3, pipelines=lines)).pipelines) == 2


def test_a_pinned_expert_is_never_moved() -> None:
    assert not plan(view(expert(ALICE, 0, pinned=True), expert(BOB, 0, pinned=True)), SECTION, 100.0)


def test_an_expert_is_not_moved_within_its_cooldown() -> None:
    two = replace(view(expert(ALICE, 0), expert(BOB, 0)), moved={ALICE: 99.0, BOB: 99.0})
    assert not plan(two, SECTION, 100.0)
    assert plan(two, SECTION, 102.0)


def test_a_lost_trainer_ends_its_pipelines_and_another_drives_new_ones() -> None:
    lines = (pipeline("p1", ALICE, BOB, trainer=PeerId("gone")),)
    lost = view(expert(ALICE, 0), expert(BOB, 1), pipelines=lines)
    assert [type(a) for a in plan(lost, SECTION, 0.0)] == [Dissolve]
    assert [line.trainer for line in settle(lost).pipelines] == [TOM]


def test_that_no_more_pipelines_are_allowed_is_said() -> None:
    line = pipeline("p1", ALICE, BOB)
    full = view(expert(ALICE, 0), expert(BOB, 1), expert(CAROL, 0), expert(DAVE, 1), pipelines=(line,))
    assert missing(full, 1) == "waiting: there are as many pipelines as plan.max_pipelines allows (1)"
    assert "max_pipelines" not in missing(full, 2)


def test_without_a_trainer_nothing_forms_and_it_is_said() -> None:
    nobody = replace(view(expert(ALICE, 0), expert(BOB, 1)), trainers=())
    assert not plan(nobody, SECTION, 0.0)
    assert missing(nobody, 64) == "waiting: no trainer"


@settings(max_examples=200, deadline=None)
@given(
    num_stages=st.integers(1, 4),
    seats=st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=14),
    lost=st.sets(st.integers(0, 13), max_size=6),
)
def test_as_many_whole_pipelines_as_there_are_peers_for(
    num_stages: int, seats: list[int | None], lost: set[int]
) -> None:
    """A greedy oracle keeps floor(peers / stages) pipelines when nobody is pinned; so must the plan."""
    experts = [expert(PeerId(f"e{n:02}"), None if s is None else s % num_stages) for n, s in enumerate(seats)]
    rested = settle(view(*experts, stages=num_stages))
    assert len(rested.pipelines) == len(experts) // num_stages
    survivors = tuple(e for e in rested.experts if int(e.peer[1:]) not in lost)
    again = settle(replace(rested, experts=survivors))
    assert len(again.pipelines) == len(survivors) // num_stages
    used = [seat.peer for line in again.pipelines for seat in line.route]
    assert len(used) == len(set(used))
