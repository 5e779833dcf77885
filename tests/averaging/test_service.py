"""What others may ask of a sibling, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distqat.averaging import messages
from distqat.averaging.group import Invite, Invited, JoinReply, Leave, RoundRef, Verdict
from distqat.errors import MessageError, RefusedError, StaleError, TensorError, WrongRunError
from distqat.ids import Endpoint, PeerId, RunId, StageIndex
from distqat.rpc.local import Network
from distqat.rpc.transport import Deadline, Method
from distqat.wire import frames
from tests.averaging.swarm import PLAIN, RUN, STAGE, Node, Swarm, founded, moved
from tests.averaging.words import join, prepared, round_ref
from tests.support import run_virtual

MALLORY = PeerId("mallory")


async def ask(node: Node, method: Method, request: bytes) -> bytes:
    context = node.averager.context
    return await context.transport.call(context.endpoint, method, request, Deadline.after(60))


def invite(number: int, **changes: Any) -> bytes:
    reference = replace(round_ref(number), **changes)
    return messages.encode(Invite(reference, MALLORY, Endpoint("mallory", 1)))


def test_an_invitation_is_remembered_until_its_round_is_committed() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (swarm, [alice]):
            reply = messages.decode(Invited, await ask(alice, messages.INVITE, invite(0)))
            assert reply == Invited(joining=True)
            assert alice.averager.invited
            # The one that invited is not there, so she leads.
            await alice.averager.synchronise(moved(swarm, 1.0), 1)
            assert not alice.averager.invited
            with pytest.raises(StaleError, match="alice has committed 1 rounds"):
                await ask(alice, messages.INVITE, invite(0))
            assert alice.lost[0][0] == MALLORY

    run_virtual(scenario())


def test_who_stands_still_in_a_step_says_so_when_invited() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (_swarm, [alice]):
            alice.averager.is_held_up = lambda: True
            reply = messages.decode(Invited, await ask(alice, messages.INVITE, invite(0)))
            assert reply == Invited(joining=True, held_up=True)
            assert alice.averager.invited, "it comes when the step is done"

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"run": RunId("other", "1")}, WrongRunError, "not other@1"),
        ({"stage": StageIndex(2)}, RefusedError, "hosts stage 1, not 2"),
    ],
)
def test_rounds_of_others_are_refused(changes: dict[str, Any], error: type[Exception], reason: str) -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (_swarm, [alice]):
            with pytest.raises(error, match=reason):
                await ask(alice, messages.INVITE, invite(0, **changes))
            request = replace(join("bob"), round=replace(round_ref(), **changes))
            with pytest.raises(error, match=reason):
                await ask(alice, messages.JOIN, messages.encode(request))
            assert not alice.averager.invited

    run_virtual(scenario())


def test_without_committed_state_a_sibling_takes_no_part() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(), PLAIN)
        async with swarm.node("alice") as alice:
            for method, request in ((messages.INVITE, invite(0)), (messages.JOIN, messages.encode(join("bob")))):
                with pytest.raises(RefusedError, match="no committed state yet"):
                    await ask(alice, method, request)
            assert not alice.averager.invited

    run_virtual(scenario())


def test_it_answers_whatever_it_does() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(), PLAIN)
        async with swarm.node("alice") as alice:
            assert await ask(alice, messages.PROBE, b"") == b""
            await alice.averager.found(swarm.start())
            assert await ask(alice, messages.PROBE, b"") == b""

    run_virtual(scenario())


def test_another_size_is_refused() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (_swarm, [alice]):
            with pytest.raises(TensorError, match="bob has 11 elements for round 0 of stage 1, alice has 10"):
                await ask(alice, messages.JOIN, messages.encode(replace(join("bob"), elements=11)))

    run_virtual(scenario())


def test_who_is_behind_is_told_where_to_catch_up() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (swarm, [alice]):
            await alice.averager.synchronise(moved(swarm, 1.0), 1)
            reply = messages.decode(JoinReply, await ask(alice, messages.JOIN, messages.encode(join("bob"))))
            assert reply.stale is not None
            assert (reply.stale.donor, reply.stale.round, reply.stale.digest) == ("alice", 1, alice.digest)

    run_virtual(scenario())


def test_who_says_farewell_is_gone() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (_swarm, [alice]):
            with pytest.raises(RefusedError, match="hosts stage 1, not 2"):
                await ask(alice, messages.LEAVE, messages.encode(Leave(RUN, StageIndex(2), PeerId("bob"))))
            assert not alice.averager.pursuit.round.company.gone
            await ask(alice, messages.LEAVE, messages.encode(Leave(RUN, STAGE, PeerId("bob"))))
            assert alice.averager.pursuit.round.company.gone == {"bob"}

    run_virtual(scenario())


def test_who_asks_a_sibling_that_never_reaches_the_end_of_its_step_hears_so() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (_swarm, [alice]):
            with pytest.raises(RefusedError, match="has not reached the end of a step"):
                await ask(alice, messages.JOIN, messages.encode(join("bob")))
            assert not alice.averager.pursuit.round.has_guests

    run_virtual(scenario())


def test_votes_are_taken_for_known_attempts_of_members_only() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (swarm, [alice]):
            with pytest.raises(StaleError, match="attempt x is not known"):
                await ask(alice, messages.VOTE, messages.encode(prepared("bob")))
            await alice.averager.synchronise(moved(swarm, 1.0), 1)
            [attempt] = alice.averager.pursuit.lobby._sittings
            with pytest.raises(RefusedError, match="bob is not in attempt"):
                await ask(alice, messages.VOTE, messages.encode(replace(prepared("bob"), attempt=attempt)))
            # Who asks late hears the same verdict.
            late = messages.encode(replace(prepared("alice"), attempt=attempt))
            assert messages.decode(Verdict, await ask(alice, messages.VOTE, late)) == Verdict(
                True, digest=alice.digest, donor="alice"
            )

    run_virtual(scenario())


@pytest.mark.parametrize("method", [messages.INVITE, messages.JOIN, messages.VOTE, messages.LEAVE])
@pytest.mark.parametrize("garbage", [b"\xff\xff", b""])
def test_garbage_is_refused_and_harms_nothing(method: Method, garbage: bytes) -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (swarm, [alice]):
            with pytest.raises(MessageError):
                await ask(alice, method, garbage)
            await alice.averager.synchronise(moved(swarm, 1.0), 1)

    run_virtual(scenario())


def test_garbage_in_an_exchange() -> None:
    async def scenario() -> None:
        async with founded(["alice"]) as (_swarm, [alice]):
            context = alice.averager.context
            for frame in (b"", b"\xff", frames.join(b"\xff\xff")):
                async with context.transport.stream(context.endpoint, messages.EXCHANGE, Deadline.after(9)) as stream:
                    await stream.send(frame)
                    with pytest.raises(MessageError):
                        await stream.receive()

    run_virtual(scenario())


def test_the_words_know_their_round() -> None:
    assert RoundRef(RUN, STAGE, 3) == round_ref(3)
