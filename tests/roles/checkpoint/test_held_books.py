"""The books beside the checkpoints: kept when those of the client cannot be had, and the newest that know the steps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distqat.data.claims import LedgerSnapshot
from distqat.data.ledger import Ledger
from distqat.data.messages import BooksAnswer
from distqat.errors import UnreachableError
from distqat.ids import Endpoint, PeerId, RunId
from distqat.roles.checkpoint.held_books import HeldBooks, take_books
from distqat.roles.checkpoint.words import CheckpointStatus
from distqat.roles.status import PeerStatus, RoleStatus
from distqat.rpc.transport import Deadline, Method

RUN = RunId("digits", "0" * 32)


def ledger(steps: int) -> Ledger:
    """Of a pipeline that has committed so many steps of ten samples."""
    found = Ledger(200)
    for step in range(1, steps + 1):
        claim = found.claim("p", 10, step, step)
        assert claim is not None
        found.resolve(claim.id, True)
    return found


def test_the_last_ones_stay_while_the_client_is_away(tmp_path: Path) -> None:
    answers: list[LedgerSnapshot | None] = [ledger(3).snapshot(), None]

    async def ask() -> LedgerSnapshot | None:
        return answers.pop(0)

    async def scenario() -> None:
        held = HeldBooks(tmp_path / "run" / "books.json", ask)
        await held.find()
        assert held.num_claims == 0
        await held.renew({"p": 3})
        await held.renew({"p": 3})
        assert held.num_claims == 3
        again = HeldBooks(tmp_path / "run" / "books.json", ask)
        await again.find()
        assert again.newest == held.newest

    asyncio.run(scenario())


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> LedgerSnapshot | None:
        return None

    (tmp_path / "books.json").write_text("{")
    held = HeldBooks(tmp_path / "books.json", ask)
    asyncio.run(held.find())
    assert held.newest is None
    assert "cannot be used" in caplog.text


class Peers:
    """Who holds which books; None: it says so, and cannot be reached; or what it says instead."""

    def __init__(self, **held: Ledger | str | None) -> None:
        self.held = held
        self.transport = self

    def statuses(self) -> dict[PeerId, PeerStatus]:
        found = {}
        for name, books in self.held.items():
            num_claims = books.snapshot().num_claims if isinstance(books, Ledger) else 99
            role = RoleStatus("mirror", "following", "", checkpoints=CheckpointStatus(books=num_claims))
            found[PeerId(name)] = PeerStatus(peer=PeerId(name), endpoint=Endpoint(name, 1), run=RUN, roles=(role,))
        return found

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        books = self.held[to.host]
        if books is None:
            raise UnreachableError("nobody listens")
        return BooksAnswer(books if isinstance(books, str) else books.snapshot().to_json()).encode()


@pytest.mark.parametrize(
    ("own", "steps", "committed"),
    [
        (0, {}, 60),  # Nothing is known here: the newest.
        (0, {"p": 5}, 60),
        (0, {"p": 9}, 60),  # Nobody knows of all these steps; better than nothing.
        (2, {"p": 5}, 60),
        (2, {"p": 9}, 20),  # No better than the own ones.
        (5, {"p": 5}, 50),  # The own ones know it all.
    ],
)
def test_the_newest_that_know_the_steps_are_taken(own: int, steps: dict[str, int], committed: int) -> None:
    async def scenario() -> None:
        strange = Ledger.restore(ledger(6).snapshot()).snapshot().to_json().replace("200", "300")
        peers, mine = Peers(torn="{", strange=strange, old=ledger(4), new=ledger(6)), ledger(own)
        context: Any = SimpleNamespace(transport=peers.transport)
        assert await take_books(mine, peers.statuses(), context, RUN, steps) == ()
        assert mine.committed == committed

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("own", "steps", "away", "committed"),
    [
        (0, {}, ("away",), 0),  # Those that are away are newer.
        (0, {"p": 9}, ("away",), 0),
        (0, {"p": 5}, (), 60),  # These know of all steps: what is newer is not needed.
        (2, {"p": 9}, ("away",), 20),
        (5, {"p": 5}, (), 50),
    ],
)
def test_who_does_not_answer_is_to_be_asked_again(
    own: int, steps: dict[str, int], away: tuple[str, ...], committed: int
) -> None:
    async def scenario() -> None:
        peers, mine = Peers(away=None, new=ledger(6)), ledger(own)
        context: Any = SimpleNamespace(transport=peers.transport)
        assert await take_books(mine, peers.statuses(), context, RUN, steps) == away
        assert mine.committed == committed

    asyncio.run(scenario())


def test_books_that_know_the_checkpoints_are_not_replaced_by_some_that_do_not(tmp_path: Path) -> None:
    found = [ledger(5), ledger(0), ledger(1), ledger(7), Ledger(200)]
    answers = [books.snapshot() for books in found]

    async def ask() -> LedgerSnapshot | None:
        return answers.pop(0)

    async def scenario() -> None:
        held = HeldBooks(tmp_path / "books.json", ask)
        checkpoints = [{"p": 2}, {"p": 4}]
        await held.renew({"p": 5})
        for _ in range(2):
            # A client that began at 0 beside a run that goes on.
            await held.renew({"p": 6}, checkpoints)
            assert held.newest == found[0].snapshot()
        await held.renew({"p": 7}, checkpoints)
        assert held.newest == found[3].snapshot()
        # Nothing that lies here is known to either.
        await held.renew({"q": 9}, [{"q": 8}])
        assert held.newest == found[4].snapshot()
        again = HeldBooks(tmp_path / "books.json", ask)
        await again.find()
        assert again.newest == held.newest

    asyncio.run(scenario())
