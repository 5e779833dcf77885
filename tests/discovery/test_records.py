from __future__ import annotations

from dataclasses import replace

from distqat.discovery.records import ClientRecord, ExpertRecord, PeerRecord, substance
from distqat.ids import Endpoint, RunId

HERE = Endpoint("alice", 1)
EXPERT = ExpertRecord(HERE, seated=True, ready=True)


def test_progress_is_no_news_but_the_first_round_is() -> None:
    assert substance(EXPERT) == substance(replace(EXPERT, step=5, digest="d", reason="training"))
    assert substance(EXPERT) != substance(replace(EXPERT, round=1))
    assert substance(replace(EXPERT, round=1)) == substance(replace(EXPERT, round=2))
    assert substance(EXPERT) != substance(replace(EXPERT, ready=False))


def test_that_a_run_has_committed_is_news() -> None:
    peer = PeerRecord(HERE, ("trainer",), RunId("run", "ab"), "1")
    assert substance(peer) != substance(replace(peer, committed=True))
    assert substance(ClientRecord(HERE, True, "a")) == substance(ClientRecord(HERE, True, "b"))
