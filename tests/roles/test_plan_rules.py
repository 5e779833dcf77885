"""The rules of the plan where spares hold state: promotion, waiting, regrouping, moving, following; and on any view."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat.ids import Endpoint, PeerId, PipelineId, Seat, StageIndex
from distqat.roles.plan import Assign, Dissolve, ExpertView, Follow, Form, Pipeline, View, keep, missing, plan
from distqat.roles.plan.outcome import after
from distqat.sections import PlanSection
from tests.roles.test_plan import ALICE, BOB, CAROL, DAVE, SECTION, TOM, expert, pipeline, view
from tests.sim.planning import check_wave

ERIN, FRED = PeerId("erin"), PeerId("fred")
P1, P2 = pipeline("p1", ALICE, BOB), pipeline("p2", CAROL, DAVE)


def spare(peer: PeerId, follows: int | None = None, warm: bool = True) -> ExpertView:
    stage = None if follows is None else StageIndex(follows)
    return replace(expert(peer), is_ready=False, follows=stage, is_warm=warm and stage is not None)


def told(view: View, now: float = 0.0, section: PlanSection = SECTION) -> list[tuple[object, ...]]:
    """The actions, without their reasons."""
    actions = plan(view, section, now)
    check_wave(view, section, now, actions)
    lines: list[tuple[object, ...]] = []
    for action in actions:
        match action:
            case Assign(peer, stage) | Follow(peer, stage):
                lines.append((type(action), peer, stage))
            case Form(name, route):
                lines.append((Form, name, *(seat.peer for seat in route)))
            case Dissolve(name):
                lines.append((Dissolve, name))
    return lines


def test_a_warm_spare_takes_the_lost_place_and_the_pipeline_waits_for_it() -> None:
    broken = view(expert(ALICE, 0), spare(ERIN, 0), spare(FRED, 1), pipelines=(P1,))
    assert told(broken) == [(Assign, FRED, 1)]
    promoted = after(broken, plan(broken, SECTION, 0.0), 0.0)
    assert told(promoted, 1.0) == []
    assert (
        missing(promoted, 64)
        == "waiting: pipeline p1 lost stage 1 on bob (bob:1); fred, who takes its place, is not ready yet"
    )
    ready = replace(promoted, experts=(expert(ALICE, 0), spare(ERIN, 0), expert(FRED, 1)))
    assert told(ready, 1.0) == [(Form, "p1", ALICE, FRED)]


def test_a_free_sibling_is_there_before_a_warm_spare() -> None:
    broken = view(expert(ALICE, 0), expert(ERIN, 1), spare(FRED, 1), pipelines=(P1,))
    assert told(broken)[0] == (Form, "p1", ALICE, ERIN)


def test_a_spare_without_state_takes_the_place_if_nobody_else_can() -> None:
    broken = view(expert(ALICE, 0), spare(FRED), pipelines=(P1,))
    assert told(broken) == [(Assign, FRED, 1)]


def test_two_broken_pipelines_become_one_before_a_spare_without_state_is_waited_for() -> None:
    broken = view(expert(ALICE, 0), expert(DAVE, 1), spare(FRED), pipelines=(P1, P2))
    assert told(broken) == [(Dissolve, "p2"), (Follow, FRED, 0)]
    # Its expert is given to the other when it has left.
    left = replace(broken, pipelines=(P1,))
    assert told(left)[0] == (Form, "p1", ALICE, DAVE)


def test_warm_spares_keep_two_broken_pipelines_apart() -> None:
    broken = view(expert(ALICE, 0), expert(DAVE, 1), spare(ERIN, 0), spare(FRED, 1), pipelines=(P1, P2))
    assert sorted(map(str, told(broken))) == sorted(map(str, [(Assign, FRED, 1), (Assign, ERIN, 0)]))


def test_a_surplus_survivor_takes_the_place_of_a_lost_one() -> None:
    broken = view(expert(ALICE, 0), expert(CAROL, 0), pipelines=(P1, P2))
    assert told(broken) == [(Dissolve, "p2")]
    assert told(replace(broken, pipelines=(P1,))) == [(Assign, CAROL, 1)]


def test_a_pipeline_waits_for_its_grace_and_no_longer() -> None:
    waiting = view(expert(ALICE, 0), expert(FRED, 1, ready=False), pipelines=(P1,))
    waiting = replace(waiting, lacking={PipelineId("p1"): 10.0}, grace=6.0)
    assert told(waiting, 16.0) == []
    assert told(waiting, 16.1) == [(Dissolve, "p1")]


def test_an_expert_that_began_anew_serves_its_pipeline_when_it_is_ready() -> None:
    again = view(expert(ALICE, 0), expert(BOB, 1, ready=False), pipelines=(P1,))
    assert told(again) == []
    assert "bob, who takes its place" in missing(again, 64)
    # Whoever is ready sooner does.
    assert told(replace(again, experts=(*again.experts, expert(ERIN, 1)))) == [(Form, "p1", ALICE, ERIN)]


def test_what_a_dissolved_pipeline_held_is_free_when_it_has_left() -> None:
    lost = view(expert(ALICE, 0), expert(BOB, 1), pipelines=(replace(P1, trainer=PeerId("gone")),))
    assert told(lost) == [(Dissolve, "p1")]
    assert told(replace(lost, pipelines=())) == [(Form, None, ALICE, BOB)]


def test_nothing_new_begins_when_only_what_is_there_is_kept() -> None:
    four = view(expert(ALICE, 0), expert(CAROL, 0), expert(DAVE, 1), spare(FRED, 1), spare(ERIN), pipelines=(P1,))
    assert [type(a) for a in keep(four, SECTION, 0.0)] == [Form]
    rest = replace(four, experts=(expert(ALICE, 0), expert(CAROL, 0), spare(FRED, 1), spare(ERIN)))
    assert [(a.peer, a.stage) for a in keep(rest, SECTION, 0.0) if isinstance(a, Assign)] == [(FRED, 1)]
    assert not keep(replace(rest, pipelines=()), SECTION, 0.0)


def test_who_holds_the_state_takes_the_hole_and_the_fastest_of_the_others_the_costliest() -> None:
    fast, slow = replace(spare(ALICE), speed=2.0), replace(spare(BOB), speed=1.0)
    three = replace(view(slow, fast, spare(CAROL, 1), stages=3), costs=(1.0, 1.0, 5.0))
    assert set(told(three)) == {(Assign, CAROL, 1), (Assign, ALICE, 2), (Assign, BOB, 0)}


def test_spares_follow_the_stages_that_have_fewest_who_could_step_in() -> None:
    spares = [spare(PeerId(f"s{n}")) for n in range(3)]
    seats = (expert(ALICE, 0), expert(BOB, 1))
    one = replace(view(*seats, *spares, pipelines=(P1,)), costs=(1.0, 2.0))
    section = PlanSection(max_pipelines=1)
    assert sorted(a.stage for a in plan(one, section, 0.0) if isinstance(a, Follow)) == [0, 1, 1]
    assert told(one, section=PlanSection(max_pipelines=1, followers=False)) == []


@pytest.mark.parametrize(("others", "now", "is_told"), [(1, 9.0, False), (2, 9.0, True), (2, 1.0, False)])
def test_a_spare_changes_what_it_follows_for_a_clear_gain_and_not_too_soon(
    others: int, now: float, is_told: bool
) -> None:
    followers = [spare(PeerId(f"s{n}"), 0) for n in range(others)]
    one = view(expert(ALICE, 0), expert(BOB, 1), *followers, pipelines=(P1,))
    one = replace(one, moved={e.peer: 0.0 for e in followers})
    assert bool(told(one, now, PlanSection(max_pipelines=1))) == is_told


def test_the_only_whole_copy_of_a_stage_is_kept() -> None:
    # Of the two that follow stage 0 only one is warm; the other one goes.
    one = view(expert(ALICE, 0), expert(BOB, 1), spare(ERIN, 0), spare(FRED, 0, warm=False), pipelines=(P1,))
    assert told(one, 9.0, PlanSection(max_pipelines=1)) == [(Follow, FRED, 1)]


def test_a_stage_has_no_more_followers_than_help() -> None:
    one = view(expert(ALICE, 0), expert(BOB, 1), *(spare(PeerId(f"s{n}")) for n in range(9)), pipelines=(P1,))
    assert len(told(one, section=PlanSection(max_pipelines=1))) == 4


def test_it_is_said_what_a_pipeline_waits_for() -> None:
    assert missing(view(expert(ALICE, 0), pipelines=(P1,)), 64) == (
        "waiting: pipeline p1 lost stage 1 on bob (bob:1), and nobody has taken its place yet"
    )


@st.composite
def views(draw: st.DrawFn) -> View:
    """Any swarm: seats of every kind, pipelines whole and broken, by trainers that live or not."""
    num_stages = draw(st.integers(1, 4))
    stages = st.integers(0, num_stages - 1).map(StageIndex)
    experts, moved = [], {}
    for number in range(draw(st.integers(0, 16))):
        peer = PeerId(f"e{number:02}")
        stage, is_ready = draw(st.none() | stages), draw(st.booleans())
        follows = draw(st.none() | stages) if stage is None else None
        is_pinned = stage is not None and draw(st.booleans())
        is_warm = follows is not None and draw(st.booleans())
        ready = is_ready and stage is not None
        experts.append(ExpertView(peer, Endpoint(peer, 1), stage, ready, is_pinned, follows, is_warm))
        moved[peer] = draw(st.sampled_from([0.0, 9.0]))
    names = [e.peer for e in experts] + [PeerId(f"gone{n}") for n in range(6)]
    shuffled = iter(draw(st.permutations(names)))
    lines = []
    for number in range(draw(st.integers(0, len(names) // num_stages))):
        peers = [next(shuffled) for _ in range(num_stages)]
        route = tuple(Seat(peer, Endpoint(peer, 1), StageIndex(stage)) for stage, peer in enumerate(peers))
        trainer = draw(st.sampled_from([TOM, PeerId("gone")]))
        lines.append(Pipeline(PipelineId(f"p{number}"), 1, route, trainer))
    since = {line.id: draw(st.sampled_from([0.0, 9.0])) for line in lines}
    trainers = (TOM,) if draw(st.booleans()) or not lines else ()
    promoting = {e.peer: 9.5 for e in experts if draw(st.booleans())}
    return View(
        num_stages, tuple(experts), trainers, tuple(lines), moved=moved, promoting=promoting, lacking=since, grace=5.0
    )


@settings(max_examples=150, deadline=None)
@given(views(), st.integers(1, 5))
def test_on_any_view_all_actions_are_allowed_and_told_once(view: View, most: int) -> None:
    section, now = PlanSection(max_pipelines=most), 10.0
    for _ in range(20):
        actions = plan(view, section, now)
        check_wave(view, section, now, actions)
        assert list(actions) == list(plan(view, section, now))
        outcome = after(view, actions, now)
        # Pipelines that were told to stop are still there: nobody is told again, or otherwise.
        moved = {a.peer for a in actions if isinstance(a, Assign | Follow)}
        again = plan(replace(outcome, ending=frozenset()), section, now)
        assert not moved & {a.peer for a in again if isinstance(a, Assign | Follow)}
        if not actions:
            return
        view = replace(outcome, pipelines=tuple(p for p in outcome.pipelines if p.id not in outcome.ending))
        view = replace(view, ending=frozenset())
    raise AssertionError("the plan does not come to rest")
