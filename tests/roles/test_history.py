from __future__ import annotations

from pathlib import Path

import pytest

from distqat.discovery.records import ExpertRecord, PeerRecord
from distqat.discovery.view import Entry, Snapshot
from distqat.ids import Endpoint, PeerId, RunId
from distqat.roles.history import History

RUN, OTHER = RunId("run", "ab" * 16), RunId("other", "cd" * 16)
HERE = Endpoint("alice", 1)
ALICE = PeerId("alice")


def peers(run: RunId | None, committed: bool) -> Snapshot:
    return Snapshot(run=RUN, peers={ALICE: Entry(ALICE, 1, PeerRecord(HERE, ("trainer",), run, "1", committed))})


def experts(number: int, run: RunId = RUN) -> Snapshot:
    record = ExpertRecord(HERE, seated=True, ready=True, round=number)
    return Snapshot(run=run, experts={ALICE: Entry(ALICE, 1, record)})


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (Snapshot(run=RUN), False),
        (experts(0), False),
        (experts(1), True),
        (experts(1, OTHER), False),
        (peers(RUN, False), False),
        (peers(RUN, True), True),
        (peers(OTHER, True), False),
        (peers(None, True), False),
    ],
)
def test_experts_with_rounds_and_peers_that_know_say_so(seen: Snapshot, expected: bool) -> None:
    assert History().has_committed(RUN, seen) is expected


def test_what_was_heard_once_is_known_for_good(tmp_path: Path) -> None:
    folder = tmp_path / "peer-0"
    history = History(folder)
    assert not history.has_committed(RUN, experts(0))
    assert not list(tmp_path.rglob("*.json"))
    assert history.has_committed(RUN, experts(3))
    assert history.has_committed(RUN, Snapshot(run=RUN))
    assert not history.has_committed(OTHER)
    # Another life of the daemon, which sees nobody.
    again = History(folder)
    assert again.has_committed(RUN)
    assert not again.has_committed(OTHER)
    assert repr(again) == "<History of 1 runs>"


def test_a_torn_file_still_says_it(tmp_path: Path) -> None:
    (tmp_path / f"committed-{RUN.digest}.json").write_text("")
    assert History(tmp_path).has_committed(RUN)


def test_a_folder_that_cannot_be_written_to_costs_only_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    history = History(file / "below")
    assert history.has_committed(RUN, experts(1))
    assert history.has_committed(RUN)
