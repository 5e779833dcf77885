"""The ledger on disk: what a trainer was told is still known after the client was killed at any moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

from distqat.data.ledger import Ledger
from distqat.roles.books import open_books
from tests.support import run


def test_a_client_that_comes_back_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        books = open_books(tmp_path / "books.json", 100, has_progress=False)
        first = books.ledger.claim("p1", 10, 1)
        second = books.ledger.claim("p1", 10, 2)
        assert first is not None
        assert second is not None
        books.ledger.resolve(first.id, committed=True)
        await books.save()
        again = open_books(tmp_path / "books.json", 100, has_progress=True).ledger
        assert (again.committed, again.open, again.lost, again.doubled) == (10, 10, 0, 0)
        assert again.resolve(second.id, committed=True)
        assert again.committed == 20

    run(scenario())


def test_books_of_a_swarm_that_holds_nothing_any_more_are_not_believed(tmp_path: Path) -> None:
    async def scenario() -> None:
        books = open_books(tmp_path / "books.json", 100, has_progress=False)
        claim = books.ledger.claim("p1", 10, 1)
        assert claim is not None
        books.ledger.resolve(claim.id, committed=True)
        await books.save()
        assert open_books(tmp_path / "books.json", 100, has_progress=False).ledger.committed == 0
        assert open_books(tmp_path / "books.json", 50, has_progress=True).ledger.committed == 0

    run(scenario())


def test_torn_books_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "books.json"
    for text in ("", "{", "[]", '{"budget": 100}', "null"):
        path.write_text(text)
        assert open_books(path, 100, has_progress=True).ledger.committed == 0


def test_calls_that_meet_share_a_write_and_none_returns_too_early(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "books.json"
        books = open_books(path, 1000, has_progress=False)

        async def claim_and_save(serial: int) -> None:
            claim = books.ledger.claim(f"p{serial}", 10, 1)
            assert claim is not None
            await books.save()
            held = open_books(path, 1000, has_progress=True).ledger
            assert held.last_serial(f"p{serial}") == 1

        async with asyncio.TaskGroup() as group:
            for serial in range(20):
                group.create_task(claim_and_save(serial))

    run(scenario())


def test_the_file_holds_all_of_the_ledger(tmp_path: Path) -> None:
    async def scenario() -> None:
        books = open_books(tmp_path / "books.json", 64, has_progress=False)
        for serial in range(1, 5):
            books.ledger.claim("p1", 3, serial)
            books.ledger.claim("p2", 5, serial)
        books.ledger.resolve(1, committed=True)
        books.ledger.resolve(2, committed=False)
        books.ledger.release("p2")
        await books.save()
        again = open_books(tmp_path / "books.json", 64, has_progress=True).ledger
        assert isinstance(again, Ledger)
        assert (again.committed, again.open, again.lost) == (
            books.ledger.committed,
            books.ledger.open,
            books.ledger.lost,
        )

    run(scenario())


def test_a_disk_that_is_full_is_said_and_ends_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "folder" / "books.json"
        books = open_books(path, 100, has_progress=False)
        (tmp_path / "folder").write_text("no folder can be made here")
        claim = books.ledger.claim("p1", 10, 1)
        assert claim is not None
        await books.save()
        assert books.fault.startswith(f"the books cannot be written to {path}: ")
        (tmp_path / "folder").unlink()
        await books.save()
        assert books.fault == ""
        assert open_books(path, 100, has_progress=True).ledger.open == 10

    run(scenario())
