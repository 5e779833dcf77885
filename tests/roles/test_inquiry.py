"""A client that begins to plan asks until those who know the books, or what they lack, have answered or are lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from distqat.data.claims import claims_to_json
from distqat.data.ledger import Ledger
from distqat.data.messages import BooksAnswer
from distqat.errors import DeadlineError, RefusedError
from distqat.ids import Endpoint, PeerId, RunId
from distqat.roles.checkpoint.held_books import HELD_BOOKS
from distqat.roles.checkpoint.words import CheckpointStatus
from distqat.roles.inquiry import BOOKED, Inquiry
from distqat.roles.leases import Leases
from distqat.roles.status import Loss, PeerStatus, PipelineStatus, RoleStatus
from distqat.rpc.transport import Deadline, Method
from distqat.telemetry import Reason
from tests.data.test_completion import trained
from tests.support import run_virtual

RUN = RunId("digits", "0" * 32)
BOB, EVE = PeerId("b" * 40), PeerId("e" * 40)


class Swarm:
    """Bob trains and has the books; he answers from a certain time on."""

    def __init__(self, opens: float = 100.0) -> None:
        self.opens = opens
        self.declines = False
        self.leases = Leases(2.0)
        self.reason = Reason(logging.getLogger(__name__), "")
        self.reasons: set[str] = set()
        self.live = Ledger(400)
        self.roles: Callable[[], tuple[RoleStatus, ...]] = tuple
        self.peers = [BOB]
        context: Any = SimpleNamespace(transport=self)
        self.inquiry = Inquiry(context, RUN, self.leases, self.ask_all, self.reason)

    async def ask_all(self) -> list[PeerId]:
        self.reasons.add(str(self.reason))
        if BOB in self.peers:
            self.leases.statuses[BOB] = PeerStatus(BOB, Endpoint("bob", 1), run=RUN, roles=self.roles())
        return self.peers

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        if asyncio.get_running_loop().time() < self.opens:
            await asyncio.sleep(deadline.left())
            raise DeadlineError("no answer in time")
        if method == HELD_BOOKS:
            return BooksAnswer(self.live.snapshot().to_json()).encode()
        assert method == BOOKED
        if self.declines:
            raise RefusedError("it does not drive anything")
        return BooksAnswer(claims_to_json(self.booked)).encode()

    def trains(self, steps: int) -> None:
        """He has booked so many steps, and shows the last."""
        self.booked = trained(self.live, "p", 1, steps)
        line = PipelineStatus("p", step=steps, booked=tuple(self.booked[-3:]))
        self.roles = lambda: (RoleStatus("trainer", "training", "", pipelines=(line,)),)

    def keeps(self) -> None:
        """He has books beside his checkpoints."""
        status = CheckpointStatus(books=self.live.snapshot().num_claims)
        self.roles = lambda: (RoleStatus("mirror", "following", "", checkpoints=status),)


@pytest.mark.parametrize("has_progress", [True, False])
def test_books_that_somebody_has_are_waited_for(has_progress: bool) -> None:
    async def scenario() -> None:
        swarm, ledger = Swarm(), Ledger(400)
        trained(swarm.live, "p", 1, 5)
        swarm.keeps()
        await swarm.inquiry.find(ledger, has_progress)
        assert asyncio.get_running_loop().time() >= 100.0
        assert ledger.committed == 50
        assert "waiting: the run goes on, and its books are to be had of bbbbbbbb" in swarm.reasons

    run_virtual(scenario())


def test_who_is_lost_is_waited_for_no_longer() -> None:
    async def scenario() -> None:
        swarm, ledger = Swarm(), Ledger(400)
        trained(swarm.live, "p", 1, 5)
        swarm.keeps()
        finding = asyncio.ensure_future(swarm.inquiry.find(ledger, True))
        await asyncio.sleep(60.0)
        assert not finding.done()
        swarm.peers = []
        del swarm.leases.statuses[BOB]
        await asyncio.wait_for(finding, 20.0)
        assert ledger.is_new

    run_virtual(scenario())


def test_who_has_not_said_what_it_does_may_have_the_books_of_a_run_that_goes_on() -> None:
    async def scenario() -> None:
        swarm = Swarm(0.0)
        swarm.peers = [EVE]
        # Nothing was ever trained: nobody can have books.
        await swarm.inquiry.find(Ledger(400), False)
        finding = asyncio.ensure_future(swarm.inquiry.find(Ledger(400), True))
        await asyncio.sleep(30.0)
        assert not finding.done()
        swarm.leases.lost[EVE] = Loss(EVE)
        await asyncio.wait_for(finding, 20.0)

    run_virtual(scenario())


def test_who_still_looks_through_its_checkpoints_is_waited_for() -> None:
    async def scenario() -> None:
        swarm, ledger = Swarm(0.0), Ledger(400)
        trained(swarm.live, "p", 1, 5)
        swarm.roles = lambda: (RoleStatus("mirror", "joining", ""),)
        finding = asyncio.ensure_future(swarm.inquiry.find(ledger, True))
        await asyncio.sleep(30.0)
        assert not finding.done()
        swarm.keeps()
        await asyncio.wait_for(finding, 20.0)
        assert ledger.committed == 50

    run_virtual(scenario())


def test_what_the_books_lack_is_asked_of_the_trainer_until_it_answers() -> None:
    async def scenario() -> None:
        swarm, ledger = Swarm(), Ledger(400)
        swarm.trains(20)
        await swarm.inquiry.complete(ledger)
        assert asyncio.get_running_loop().time() >= 100.0
        assert "waiting: the books are behind, and bbbbbbbb knows what came after" in swarm.reasons
        assert (ledger.committed, ledger.lost, ledger.doubled) == (200, 0, 0)
        assert ledger.covers({"p": 20})

    run_virtual(scenario())


def test_a_trainer_of_which_nothing_is_lacking_is_not_asked() -> None:
    async def scenario() -> None:
        swarm, ledger = Swarm(), Ledger(400)
        swarm.trains(3)
        await swarm.inquiry.complete(ledger)
        assert asyncio.get_running_loop().time() < 1.0
        assert ledger.covers({"p": 3})

    run_virtual(scenario())


@pytest.mark.parametrize("declines", [True, False])
def test_what_nobody_remembers_is_said(caplog: pytest.LogCaptureFixture, declines: bool) -> None:
    async def scenario() -> None:
        swarm, ledger = Swarm(0.0), Ledger(400)
        trained(ledger, "p", 1, 2)
        swarm.trains(20)
        swarm.booked, swarm.declines = swarm.booked[10:], declines
        await swarm.inquiry.complete(ledger)
        assert not ledger.covers({"p": 20})

    run_virtual(scenario())
    assert "the books lack steps of pipeline p: some samples may be trained on twice" in caplog.text
