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
        await held.renew()
        await held.renew()
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
    """Who holds which books; None: it says so, and cannot be reached."""

    def __init__(self, **held: Ledger | None) -> None:
        self.held = held
        self.transport = self

    def statuses(self) -> dict[PeerId, PeerStatus]:
        found = {}
        for name, books in self.held.items():
            num_claims = books.snapshot().num_claims if books is not None else 99
            role = RoleStatus("mirror", "following", "", checkpoints=CheckpointStatus(books=num_claims))
            found[PeerId(name)] = PeerStatus(peer=PeerId(name), endpoint=Endpoint(name, 1), run=RUN, roles=(role,))
        return found

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        books = self.held[to.host]
        if books is None:
            raise UnreachableError("nobody listens")
        return BooksAnswer(books.snapshot().to_json()).encode()


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
        peers, mine = Peers(away=None, old=ledger(4), new=ledger(6)), ledger(own)
        context: Any = SimpleNamespace(transport=peers.transport)
        await take_books(mine, peers.statuses(), context, RUN, steps)
        assert mine.committed == committed

    asyncio.run(scenario())
