"""What all records together say."""

from __future__ import annotations

from distqat.discovery.records import ClientRecord, ExpertRecord, PeerRecord
from distqat.discovery.view import LOST_MEMORY, Entry, View
from distqat.ids import Endpoint, PeerId, StageIndex

HERE = Endpoint("host", 1)
ME, ALICE, BOB = PeerId("00" * 20), PeerId("aa" * 20), PeerId("bb" * 20)
SPARE = ExpertRecord(HERE)
SEATED = ExpertRecord(HERE, seated=True, stage=StageIndex(1), round=2, step=5)


def test_records_under_several_keys_make_one_section() -> None:
    view = View(ME)
    view.fold("experts/0", ExpertRecord, [Entry(ALICE, 1, SPARE)])
    view.fold("experts/1", ExpertRecord, [Entry(BOB, 4, SEATED)])
    view.fold("peers", PeerRecord, [Entry(ALICE, 2, PeerRecord(HERE))])
    snapshot = view.compose(3, None, now=0)
    assert dict(snapshot.experts) == {ALICE: Entry(ALICE, 1, SPARE), BOB: Entry(BOB, 4, SEATED)}
    assert list(snapshot.peers) == [ALICE]
    assert repr(snapshot) == "<Snapshot 3 of no run: 1 peers, 2 experts, 0 trainers, 0 clients>"
    view.fold("experts/0", ExpertRecord, [])
    assert list(view.compose(4, None, now=0).experts) == [BOB]
    view.forget(["experts/1"])
    assert not view.compose(5, None, now=0).experts


def test_a_lost_peer_counts_for_nothing_until_it_signs_something_newer() -> None:
    view = View(ME)
    view.fold("experts", ExpertRecord, [Entry(ALICE, 7, SEATED)])
    view.fold("clients", ClientRecord, [Entry(ALICE, 9, ClientRecord(HERE))])
    view.mark_lost(ALICE, "hop to stage 1 broke", now=0)
    snapshot = view.compose(1, None, now=0)
    assert not snapshot.experts
    assert not snapshot.clients
    assert snapshot.lost == {ALICE: "hop to stage 1 broke"}
    assert "lost aaaaaaaa (hop to stage 1 broke)" in repr(snapshot)
    view.fold("experts", ExpertRecord, [Entry(ALICE, 8, SEATED)])
    assert ALICE in view.compose(1, None, now=LOST_MEMORY + 1).lost, "number 8 was signed before number 9"
    view.fold("experts", ExpertRecord, [Entry(ALICE, 10, SEATED)])
    snapshot = view.compose(1, None, now=0)
    assert list(snapshot.experts) == list(snapshot.clients) == [ALICE]
    assert not snapshot.lost


def test_lost_peers_are_forgotten_with_their_records() -> None:
    view = View(ME)
    view.fold("experts", ExpertRecord, [Entry(ALICE, 7, SEATED)])
    view.mark_lost(ALICE, "silent", now=0)
    assert view.compose(1, None, now=LOST_MEMORY + 1).lost
    view.fold("experts", ExpertRecord, [])
    assert not view.compose(1, None, now=LOST_MEMORY + 1).lost


def test_what_this_peer_says_of_itself_counts_before_its_record() -> None:
    view = View(ME)
    view.fold("experts", ExpertRecord, [Entry(ME, 3, SPARE)])
    assert not view.compose(1, None, now=0).experts, "a record of an earlier life"
    view.announce(SEATED)
    assert view.compose(1, None, now=0).experts == {ME: Entry(ME, 3, SEATED)}
    view.mark_lost(ME, "nonsense", now=0)
    assert view.compose(1, None, now=0).experts == {ME: Entry(ME, 3, SEATED)}
    view.withdraw(ExpertRecord)
    assert not view.compose(1, None, now=0).experts
