"""What counts as recovered, as there, and as compared."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from distqat.cli.chaos.schedule import Fault, Kind
from distqat.cli.chaos.watch import Digests, Span, Watch, percentile
from distqat.ids import Endpoint, PeerId, Seat, StageIndex
from distqat.roles.status import ExpertStatus, PeerStatus, PipelineStatus, Receipt, RoleStatus, RunStatus

PLACES = {name: Endpoint("127.0.0.1", port) for port, name in enumerate(("a", "b", "c", "d", "spare"), 1)}
NAMES = {endpoint: name for name, endpoint in PLACES.items()}


def line(
    name: str, route: str, step: int, phase: str = "training", epoch: int = 1, replayed: int = 0
) -> PipelineStatus:
    """A pipeline over daemons of one-letter names; `s` is the spare."""
    names = ["spare" if letter == "s" else letter for letter in route]
    seats = tuple(Seat(PeerId(name), PLACES[name], StageIndex(stage)) for stage, name in enumerate(names))
    return PipelineStatus(name, epoch, seats, step, phase=phase, replayed=replayed)


def head(*lines: PipelineStatus, committed: int = 0, lost: int = 0, doubled: int = 0, skipped: int = 0) -> PeerStatus:
    run = RunStatus(committed=committed, budget=1000, lost=lost, doubled=doubled, skipped=skipped)
    return PeerStatus("h", roles=(RoleStatus("client", run=run), RoleStatus("trainer", pipelines=lines)))


def warm() -> Watch:
    """Two pipelines of two stages and a spare, all at work at time 2."""
    watch = Watch(pipelines=2, needed=4)
    watch.staffed(5)
    for now in (1.0, 2.0):
        watch.look(now, head(line("p", "ab", int(now)), line("q", "cd", int(now))), NAMES)
    assert watch.is_whole
    return watch


def fault(kind: Kind = Kind.KILL) -> Fault:
    return Fault(0, kind, 0.0, 5.0, 0.0)


def test_a_pipeline_works_once_it_has_committed_a_step_on_its_route() -> None:
    watch = Watch(2, 4)
    watch.look(1.0, head(line("p", "ab", 5), line("q", "cd", 5)), NAMES)
    assert watch.working == 0
    watch.look(2.0, head(line("p", "ab", 6), line("q", "cd", 5)), NAMES)
    assert (watch.working, watch.is_whole) == (1, False)
    watch.look(3.0, head(line("p", "ab", 6), line("q", "cd", 6)), NAMES)
    assert watch.is_whole
    watch.look(4.0, head(line("p", "ab", 6, "broken"), line("q", "cd", 7)), NAMES)
    assert watch.working == 1


def test_a_kill_has_recovered_when_the_mended_pipeline_commits() -> None:
    watch = warm()
    watch.struck(10.0, fault(), "b", 1)
    # A step that was under way is told of late, and the trainer has not noticed yet.
    for now, step in ((10.1, 2), (10.2, 3)):
        watch.look(now, head(line("p", "ab", step), line("q", "cd", step)), NAMES)
    assert not watch.is_whole
    watch.look(10.5, head(line("p", "ab", 3, "broken"), line("q", "cd", 4)), NAMES)
    watch.look(11.0, head(line("p", "as", 3, epoch=2), line("q", "cd", 5)), NAMES)
    assert math.isnan(watch.wounds[0].recovered)
    watch.look(11.5, head(line("p", "as", 4, epoch=2), line("q", "cd", 6)), NAMES)
    assert watch.wounds[0].recovery == 1.5
    assert watch.is_whole
    assert not watch.wounds[0].is_over
    watch.healed(14.0, 0)
    assert watch.wounds[0].is_over


def test_steps_that_a_new_route_only_hears_of_are_no_recovery() -> None:
    watch = warm()
    watch.struck(10.0, fault(), "b", 1)
    watch.look(10.1, head(line("p", "as", 3, epoch=2), line("q", "cd", 3)), NAMES)
    watch.look(10.2, head(line("p", "as", 4, "forming", epoch=2), line("q", "cd", 4)), NAMES)
    watch.look(10.3, head(line("p", "as", 4, epoch=2), line("q", "cd", 5)), NAMES)
    assert not watch.is_whole
    watch.look(10.4, head(line("p", "as", 5, epoch=2), line("q", "cd", 6)), NAMES)
    assert watch.is_whole


def test_a_stopped_daemon_that_nobody_replaces_has_recovered_with_a_step_after_it_goes_on() -> None:
    watch = warm()
    watch.struck(10.0, fault(Kind.STOP), "b", 1)
    watch.look(11.0, head(line("p", "ab", 3), line("q", "cd", 3)), NAMES)
    watch.healed(15.0, 0)
    watch.look(15.1, head(line("p", "ab", 3), line("q", "cd", 8)), NAMES)
    watch.look(15.2, head(line("p", "ab", 4), line("q", "cd", 9)), NAMES)
    assert watch.wounds[0].recovered == 15.2


def test_without_its_head_nothing_works_until_that_is_back() -> None:
    watch = warm()
    watch.struck(10.0, fault(Kind.KILL_HEAD), "head", None)
    # What it said before it was killed may come late.
    for now, step in ((10.05, 3), (10.1, 4)):
        watch.look(now, head(line("p", "ab", step), line("q", "cd", step)), NAMES)
    watch.look(10.2, None, NAMES)
    assert not watch.is_whole
    watch.healed(14.0, 0)
    watch.look(14.5, head(line("x", "ab", 4), line("y", "cd", 4), committed=40), NAMES)
    watch.look(15.0, head(line("x", "ab", 5), line("y", "cd", 5), committed=40), NAMES)
    assert watch.wounds[0].recovery == 5.0
    assert watch.wounds[0].label == "kill-head"


def test_faults_of_idle_daemons_are_counted_apart() -> None:
    watch = warm()
    watch.struck(10.0, fault(), "spare", None)
    assert watch.wounds[0].label == "kill of a spare"


def test_time_counts_as_far_as_the_needed_peers_are_there() -> None:
    watch = warm()
    begin = watch.mark(2.0)
    watch.struck(10.0, fault(), "b", 1)
    watch.healed(14.0, 0)
    # One of five is away, and four are needed.
    assert Span.between(begin, watch.mark(20.0)).available == 18.0
    watch.struck(20.0, replace(fault(), number=1), "b", 1)
    watch.struck(20.0, replace(fault(), number=2), "c", 0)
    span = Span.between(begin, watch.mark(24.0))
    assert (span.seconds, span.available) == (22.0, 21.0)


def test_books_and_replays_are_those_of_the_last_look() -> None:
    watch = warm()
    watch.look(3.0, head(line("p", "ab", 3, replayed=2), line("q", "cd", 3), committed=64, lost=1, doubled=2), NAMES)
    watch.look(4.0, head(line("q", "cd", 4, replayed=1), committed=96, skipped=16), NAMES)
    watch.look(5.0, None, NAMES)
    assert (watch.committed, watch.lost, watch.doubled, watch.replays) == (96, 0, 0, 3)
    assert watch.skipped == 16
    assert Span.between(watch.mark(5.0), watch.mark(5.0)).samples == 0


def expert(peer: str, stage: int, number: int, digest: str, *receipts: tuple[int, str]) -> PeerStatus:
    told = tuple(Receipt(round=number, digest=digest) for number, digest in receipts)
    facts = ExpertStatus(seated=True, stage=stage, round=number, digest=digest, receipts=told)
    return PeerStatus(peer, roles=(RoleStatus("expert", expert=facts),))


def test_digests_of_equal_rounds_are_compared_and_others_are_not() -> None:
    digests = Digests()
    digests.add(expert("a", 0, 5, "x"))
    digests.add(expert("b", 0, 4, "w"))
    digests.add(expert("c", 1, 5, "z"))
    assert (digests.compared, digests.unequal, digests.last(0)) == (0, (), 5)
    assert not digests.agreed_after(3, 0)
    # The receipt of the round before has the digest that the sibling tells as its state.
    digests.add(expert("b", 0, 6, "y", (4, "x")))
    assert (digests.compared, digests.unequal) == (1, ())
    assert digests.agreed_after(4, 0)
    assert not digests.agreed_after(5, 0)
    digests.add(expert("c", 0, 6, "other"))
    assert digests.unequal == ("stage 0 round 6",)


def lone(peer: str, round_: int, digest: str, *contributors: str, sent: int = 0) -> PeerStatus:
    status = expert(peer, 0, round_ + 1, digest)
    facts = status.roles[0].expert
    assert facts is not None
    receipt = Receipt(round=round_, digest=digest, contributors=contributors or (peer,), bytes=sent)
    return replace(status, roles=(replace(status.roles[0], expert=replace(facts, receipts=(receipt,))),))


@pytest.mark.parametrize(
    "status",
    [lone("a", 5, "y", sent=130), lone("a", 5, "y", "a", "b", sent=130), expert("a", 0, 6, "y")],
    ids=["another only received", "another contributed", "taken over"],
)
def test_a_round_that_others_were_in_does_not_die_with_the_first_who_told_of_it(status: PeerStatus) -> None:
    digests = Digests()
    digests.add(status)
    digests.bury("a")
    digests.add(expert("b", 0, 6, "z"))
    assert (digests.unequal, digests.died) == (("stage 0 round 6",), 0)


def test_a_round_that_one_committed_alone_and_nobody_heard_of_dies_with_it() -> None:
    digests = Digests()
    digests.add(lone("a", 4, "x"))
    digests.add(lone("a", 5, "y"))
    digests.add(expert("b", 0, 5, "x"))
    digests.bury("a")
    digests.add(expert("b", 0, 6, "z"))
    digests.add(expert("c", 0, 6, "z"))
    assert (digests.compared, digests.unequal, digests.died) == (2, (), 1)
    # What another told as well stays, and is compared with those who come later.
    digests.bury("b")
    digests.add(expert("a", 0, 6, "other"))
    assert (digests.unequal, digests.died) == (("stage 0 round 6",), 1)


def test_what_was_never_committed_is_not_compared() -> None:
    digests = Digests()
    for peer, digest in (("a", "x"), ("b", "y")):
        digests.add(expert(peer, 0, 0, digest))
    assert digests.compared == 0


def test_percentiles_are_values_that_were_seen() -> None:
    values = [3.0, 1.0, 2.0, 4.0]
    assert [percentile(values, share) for share in (0.5, 0.75, 0.95, 0.99)] == [2.0, 3.0, 4.0, 4.0]
    assert math.isnan(percentile([], 0.5))
