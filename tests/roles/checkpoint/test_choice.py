"""From which checkpoints a swarm goes on."""

from __future__ import annotations

from distqat.ids import PeerId, PipelineId, StepRef
from distqat.model.agreement import LossScale, Verdict
from distqat.roles.checkpoint.choice import Choice, Holder, choose, uncovered
from distqat.roles.checkpoint.words import Checkpoint

VERDICT = Verdict(1.0, LossScale())


def step(name: str, number: int) -> StepRef:
    return StepRef(PipelineId(name), number)


def held(stage: int, number: int, cut: dict[str, int], local: tuple[str, int] | None = None) -> Checkpoint:
    at = step(*local) if local is not None else None
    steps = tuple(step(*entry) for entry in cut.items())
    return Checkpoint(stage, number, f"{stage}:{number}", steps, at, VERDICT if at is not None else None)


def holder(name: str, *checkpoints: Checkpoint, pinned: int | None = None) -> Holder:
    return Holder(PeerId(name), checkpoints, pinned)


def near(rounds: int) -> int:
    """What is gone back to at most, of so many rounds."""
    return rounds - 10


def chosen(holders: list[Holder], stages: int = 2) -> Choice:
    choice = choose(holders, range(stages), near)
    assert choice is not None
    return choice


def test_the_newest_moment_that_all_stages_have() -> None:
    alice = holder("alice", held(0, 8, {"p": 80}), held(0, 6, {"p": 60}), held(0, 4, {"p": 40}))
    bob = holder("bob", held(1, 6, {"p": 60}), held(1, 4, {"p": 40}))
    choice = chosen([alice, bob])
    assert (choice.rounds, choice.steps) == ((6, 6), {"p": 60})
    assert (choice.is_exact, choice.is_newest) == (True, False)
    assert "although newer ones" in choice.describe()


def test_a_moment_that_lies_far_behind_is_not_gone_back_to_however_well_it_fits() -> None:
    old = (held(0, 3, {"p": 30}), held(1, 3, {"p": 30}))
    alice = holder("alice", held(0, 500, {"p": 30, "q": 5000, "r": 4000}), old[0])
    bob = holder("bob", held(1, 500, {"p": 30, "q": 4999, "r": 4001}), old[1])
    choice = chosen([alice, bob])
    assert (choice.rounds, choice.steps) == ((500, 500), {"p": 30, "q": 4999, "r": 4000})
    # A machine that comes back with the only old moment of all stages changes nothing.
    assert chosen([alice, bob, holder("carol", *old)]).rounds == (500, 500)
    # Near enough it is worth the rounds.
    close = (held(0, 490, {"q": 4900}), held(1, 490, {"q": 4900}))
    assert chosen(
        [holder("alice", *alice.checkpoints, close[0]), holder("bob", *bob.checkpoints, close[1])]
    ).rounds == (
        490,
        490,
    )
    # Without experts enough for the newest there is nothing better.
    both = (held(0, 500, {"q": 5000}), held(1, 500, {"q": 4999}))
    assert chosen([holder("alice", *both, *old), holder("bob", *old)]).rounds == (3, 3)


def test_a_pipeline_of_which_all_is_here_goes_on_at_its_step() -> None:
    cut = {"p": 40, "q": 30}
    alice, bob = holder("alice", held(0, 4, cut, ("p", 42))), holder("bob", held(1, 4, cut, ("p", 42)))
    carol, dave = holder("carol", held(0, 4, cut, ("q", 30))), holder("dave", held(1, 4, cut, ("q", 31)))
    choice = chosen([alice, bob, carol, dave])
    assert [(r.peers, r.was, r.begin.step) for r in choice.revivals] == [(("alice", "bob"), "p", 42)]
    # Of the other pipeline what is committed counts, and the rest is trained again.
    assert choice.steps == {"p": 42, "q": 30}
    assert {peer: load.with_local for peer, (_, load) in choice.loads.items()} == {
        "alice": True,
        "bob": True,
        "carol": False,
        "dave": False,
    }
    assert {peer: stage for peer, (stage, _) in choice.loads.items()} == {"alice": 0, "bob": 1, "carol": 0, "dave": 1}


def test_stages_that_did_not_come_to_a_round_at_the_same_step_go_back_to_the_earliest() -> None:
    alice = holder("alice", held(0, 8, {"p": 80, "q": 70}), held(0, 6, {"p": 60, "q": 50}))
    bob = holder("bob", held(1, 8, {"p": 83, "q": 68}))
    choice = chosen([alice, bob])
    assert not choice.is_exact
    assert (choice.rounds, choice.steps) == ((8, 8), {"p": 80, "q": 68})
    assert choice.revivals == ()
    assert "differ by a few steps" in choice.describe()


def test_everybody_takes_a_stage_and_every_stage_is_taken() -> None:
    cut = {"p": 40}
    # Alice has both; only she can take stage 1.
    alice = holder("alice", held(0, 4, cut), held(1, 4, cut))
    bob = holder("bob", held(0, 4, cut))
    for holders in ([alice, bob], [bob, alice]):
        loads = chosen(holders).loads
        assert {peer: stage for peer, (stage, _) in loads.items()} == {"alice": 1, "bob": 0}


def test_who_is_pinned_takes_no_other_stage() -> None:
    cut = {"p": 40}
    both = (held(0, 4, cut), held(1, 4, cut))
    loads = chosen([holder("alice", *both, pinned=1), holder("bob", *both)]).loads
    assert {peer: stage for peer, (stage, _) in loads.items()} == {"alice": 1, "bob": 0}
    assert choose([holder("alice", *both, pinned=1), holder("bob", *both, pinned=1)], range(2), near) is None


def test_a_missing_stage_is_waited_for() -> None:
    alice = holder("alice", held(0, 4, {"p": 40}), held(2, 4, {"p": 40}))
    assert uncovered([alice], range(3)) == [1]
    assert choose([alice], range(3), near) is None


def test_one_expert_cannot_take_two_stages() -> None:
    assert choose([holder("alice", held(0, 4, {"p": 40}), held(1, 4, {"p": 40}))], range(2), near) is None


def test_of_two_courses_the_one_that_more_hold() -> None:
    cut = {"p": 40}
    odd = Checkpoint(0, 4, "zzz", (step("p", 40),))
    holders = [holder("alice", odd), holder("bob", held(0, 4, cut)), holder("carol", held(0, 4, cut))]
    choice = chosen(holders, stages=1)
    assert set(choice.loads) == {"bob", "carol"}


def test_a_single_lost_stage_is_chosen_by_itself() -> None:
    bob = holder("bob", held(1, 6, {"p": 60}), held(1, 4, {"p": 40}))
    choice = choose([bob], [1], near)
    assert choice is not None
    assert {peer: (stage, load.round) for peer, (stage, load) in choice.loads.items()} == {"bob": (1, 6)}


def test_a_mirror_gives_what_no_expert_holds_and_takes_no_stage() -> None:
    cut = {"p": 40}
    mirror = Holder(PeerId("mirror"), (held(0, 4, cut), held(1, 4, cut)), is_mirror=True)
    loads = chosen([mirror, holder("alice", held(0, 4, cut)), holder("bob")]).loads
    assert {peer: stage for peer, (stage, _) in loads.items()} == {"alice": 0, "bob": 1}
    loads = chosen([mirror, holder("alice"), holder("bob", pinned=0)]).loads
    assert {peer: stage for peer, (stage, _) in loads.items()} == {"alice": 1, "bob": 0}
    assert choose([mirror, holder("alice")], range(2), near) is None
    # Further experts catch up from those.
    assert set(chosen([mirror, holder("alice"), holder("bob"), holder("carol")]).loads) == {"alice", "bob"}
