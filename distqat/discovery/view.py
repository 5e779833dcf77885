"""What all records together say: who serves what now. Pure: `now` is handed in.

Two sources: records found in the DHT, and, before these, what this peer says itself. A peer that is known to be lost
counts for nothing until it signs a newer record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from distqat.discovery.records import ClientRecord, ConfigRecord, ExpertRecord, PeerRecord, R, Record, TrainerRecord
from distqat.ids import PeerId, RunId, short

LOST_MEMORY = 60.0
"""Seconds for which a lost peer is remembered after its last record has died."""


@dataclass(frozen=True)
class Entry(Generic[R]):
    """What one peer says, and the sequence number of the record in which it does (0: not by record yet)."""

    peer: PeerId
    sequence: int
    record: R


PeerEntry = Entry[PeerRecord]
ConfigEntry = Entry[ConfigRecord]
ExpertEntry = Entry[ExpertRecord]
TrainerEntry = Entry[TrainerRecord]
ClientEntry = Entry[ClientRecord]


@dataclass(frozen=True)
class Snapshot:
    """Who serves what at one moment; `version` grows when a record (not only its sequence number) has changed.

    `run` is None while none is chosen: then `configs` names the runs that there are, and the rest but `peers` is empty.
    `lost` gives the reason for each peer that has records but is known to be gone.
    """

    version: int = 0
    run: RunId | None = None
    peers: Mapping[PeerId, PeerEntry] = field(default_factory=dict)
    experts: Mapping[PeerId, ExpertEntry] = field(default_factory=dict)
    trainers: Mapping[PeerId, TrainerEntry] = field(default_factory=dict)
    clients: Mapping[PeerId, ClientEntry] = field(default_factory=dict)
    configs: Mapping[PeerId, ConfigEntry] = field(default_factory=dict)
    lost: Mapping[PeerId, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = f"{len(self.peers)} peers, {len(self.experts)} experts, {len(self.trainers)} trainers"
        lost = "".join(f", lost {short(peer)} ({reason})" for peer, reason in self.lost.items())
        return f"<Snapshot {self.version} of {self.run or 'no run'}: {counts}, {len(self.clients)} clients{lost}>"

    def records(self) -> dict[tuple[str, PeerId], Record]:
        """Every record by section and peer, without sequence numbers: what a change is judged by."""
        sections: dict[str, Mapping[PeerId, Entry[Any]]] = {
            "peers": self.peers,
            "experts": self.experts,
            "trainers": self.trainers,
            "clients": self.clients,
            "configs": self.configs,
        }
        return {(name, peer): entry.record for name, section in sections.items() for peer, entry in section.items()}


@dataclass(frozen=True)
class _Lost:
    """Why a peer is lost; over when a record numbered higher than `above` is found."""

    reason: str
    above: int
    until: float


class View:
    """Folds what is found and announced into snapshots."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._found: dict[str, tuple[type[Record], dict[PeerId, Entry[Any]]]] = {}  # By key.
        self._announced: dict[type[Record], Record] = {}
        self._lost: dict[PeerId, _Lost] = {}

    def __repr__(self) -> str:
        return f"<View {sum(len(found) for _, found in self._found.values())} records, {len(self._lost)} lost>"

    def fold(self, key: str, kind: type[R], entries: Iterable[Entry[R]]) -> None:
        """These are the live records under a key now."""
        found = {entry.peer: entry for entry in entries}
        self._found[key] = (kind, found)
        for entry in found.values():
            lost = self._lost.get(entry.peer)
            if lost is not None and entry.sequence > lost.above:
                del self._lost[entry.peer]

    def found(self, key: str) -> Mapping[PeerId, Entry[Any]]:
        """What was last folded under a key."""
        return self._found.get(key, (PeerRecord, {}))[1]

    def forget(self, keys: Iterable[str]) -> None:
        """These keys are of no interest any more."""
        for key in keys:
            self._found.pop(key, None)

    def mark_lost(self, peer: PeerId, reason: str, now: float) -> None:
        """The peer is gone, whatever its records say."""
        if peer == self._own:
            return
        sequences = [found[peer].sequence for _, found in self._found.values() if peer in found]
        self._lost[peer] = _Lost(reason, max(sequences, default=0), now + LOST_MEMORY)

    def announce(self, record: Record) -> None:
        """This peer says so."""
        self._announced[type(record)] = record

    def withdraw(self, kind: type[Record]) -> None:
        """This peer says nothing of that kind any more."""
        self._announced.pop(kind, None)

    def compose(self, version: int, run: RunId | None, now: float) -> Snapshot:
        """Who serves what now."""
        self._prune(now)
        return Snapshot(
            version=version,
            run=run,
            peers=self._section(PeerRecord),
            experts=self._section(ExpertRecord),
            trainers=self._section(TrainerRecord),
            clients=self._section(ClientRecord),
            configs=self._section(ConfigRecord),
            lost={peer: lost.reason for peer, lost in sorted(self._lost.items())},
        )

    def _section(self, kind: type[R]) -> dict[PeerId, Entry[R]]:
        entries = self._of_kind(kind)
        mine = entries.pop(self._own, None)
        if kind in self._announced:
            entries[self._own] = Entry[Any](self._own, mine.sequence if mine is not None else 0, self._announced[kind])
        return {peer: entry for peer, entry in sorted(entries.items()) if peer not in self._lost}

    def _of_kind(self, kind: type[Record]) -> dict[PeerId, Entry[Any]]:
        """Found entries of one kind; where a peer has several, the newest."""
        entries: dict[PeerId, Entry[Any]] = {}
        for found_kind, found in self._found.values():
            for peer, entry in found.items() if found_kind is kind else ():
                if peer not in entries or entries[peer].sequence < entry.sequence:
                    entries[peer] = entry
        return entries

    def _prune(self, now: float) -> None:
        """Drop lost peers of which nothing is left."""
        present = {peer for _, found in self._found.values() for peer in found}
        self._lost = {peer: lost for peer, lost in self._lost.items() if peer in present or lost.until > now}
