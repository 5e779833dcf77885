"""What lies in which slot, what is made next, and who reads where. Pure.

The positions of the run's order, and the held-out samples, are cut into grids of `rows`; a slot holds one of these at a
time, in parts that workers make. Slots are filled ahead of the highest position that was asked for, and what is asked
for goes before that: also positions that lie far behind, because a claim was given back.

A slot that somebody reads is leased, and not written to. If its reader is lost, nobody knows whether it reads on. So
such a slot gets another block of memory before it is written to again: nobody ever sees bytes change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from distqat.data.server.layout import Sizes


@dataclass(frozen=True)
class Want:
    """Samples [begin, end) that somebody asks for; they lie in one slot."""

    holder: int
    serial: int
    held_out: bool
    begin: int
    end: int


@dataclass(frozen=True)
class Job:
    """A part of a slot to be made: samples [begin, end) from `row` on."""

    slot: int
    row: int
    held_out: bool
    begin: int
    end: int
    renews: bool = False
    """The slot gets another block of memory first."""


@dataclass(frozen=True)
class Grant:
    """The answer to a want: where it lies. With a `fault` it is not there."""

    want: Want
    lease: int = 0
    slot: int = 0
    row: int = 0
    is_brief: bool = False
    """Most slots are leased: it should be copied and released at once."""
    fault: str = ""


class _State(Enum):
    EMPTY = "empty"
    MAKING = "making"
    MADE = "made"
    BAD = "bad"


_Key = tuple[bool, int]
"""Whether it is of the held-out samples, and the number on the grid."""


@dataclass
class _Slot:
    index: int
    key: _Key | None = None  # None: it has never held anything.
    parts: list[_State] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)  # By part that is bad.
    leases: int = 0
    used: int = 0  # When it was last asked for; larger is later.
    is_doubted: bool = False  # Somebody who was lost may still read it.
    renews: bool = False  # The next job has to renew it.


@dataclass(frozen=True)
class RingStatistics:
    """How things stand at one moment."""

    slots: int
    leased: int
    made: int
    """Samples, ever."""
    handed: int
    """Samples, ever."""
    renewed: int
    """Slots that got another block, because their reader was lost."""


class Ring:
    """Slots for `budget` positions and `held_out` samples."""

    def __init__(self, sizes: Sizes, budget: int, held_out: int) -> None:
        self.sizes = sizes
        self._lengths = {False: budget, True: held_out}
        self._slots = [_Slot(index) for index in range(sizes.slots)]
        self._by_key: dict[_Key, _Slot] = {}
        self._wants: dict[tuple[int, int], Want] = {}  # By holder and serial, in the order in which they came.
        self._leases: dict[int, tuple[int, _Slot]] = {}  # By id: the holder, and the slot.
        self._front: int | None = None  # The highest position that was asked for; None before the first.
        self._clock = 0  # Counts what was asked for.
        self._last_lease = 0
        self._made = self._handed = self._renewed = 0

    def __repr__(self) -> str:
        leased = sum(slot.leases > 0 for slot in self._slots)
        return f"<Ring {len(self._slots)} slots, {leased} leased, {len(self._wants)} wants, front {self._front}>"

    def statistics(self) -> RingStatistics:
        """A snapshot."""
        leased = sum(slot.leases > 0 for slot in self._slots)
        return RingStatistics(len(self._slots), leased, self._made, self._handed, self._renewed)

    def fault_of(self, want: Want) -> str:
        """Why nobody may ask for that; empty: one may."""
        length, rows = self._lengths[want.held_out], self.sizes.rows
        if not 0 <= want.begin < want.end <= length:
            return f"samples {want.begin} to {want.end} of {length}"
        if want.begin // rows != (want.end - 1) // rows:
            return f"samples {want.begin} to {want.end} do not lie in one slot of {rows}"
        return ""

    def ask(self, want: Want) -> None:
        """Somebody waits for that."""
        self._wants[want.holder, want.serial] = want
        if not want.held_out:
            self._front = max(self._front or 0, want.end)
        self._clock += 1
        if (slot := self._by_key.get(self._key(want))) is not None:
            slot.used = self._clock

    def settle(self) -> list[Grant]:
        """What was waited for and is there, or cannot be made; it is leased from now on."""
        grants = []
        for name, want in list(self._wants.items()):
            slot = self._by_key.get(self._key(want))
            if slot is None:
                continue
            parts = self._parts(want)
            if bad := [part for part in parts if slot.parts[part] is _State.BAD]:
                grants.append(Grant(want, fault=slot.faults[bad[0]]))
                for part in bad:
                    slot.parts[part] = _State.EMPTY  # Who asks again lets it be tried again.
            elif all(slot.parts[part] is _State.MADE for part in parts):
                grants.append(self._lease(want, slot))
            else:
                continue
            del self._wants[name]
        return grants

    def next_job(self) -> Job | None:
        """What should be made now: what somebody waits for, else what will be asked for. It counts as under way."""
        for want in self._wants.values():
            slot = self._by_key.get(self._key(want)) or self._place(self._key(want), is_wanted=True)
            if slot is not None and (job := self._start(slot, self._parts(want))) is not None:
                return job
        for key, first in self._ahead():
            slot = self._by_key.get(key) or self._place(key, is_wanted=False)
            if slot is None:
                return None
            if (job := self._start(slot, range(first, len(slot.parts)))) is not None:
                return job
        return None

    def made(self, job: Job, fault: str = "") -> None:
        """That part is there, or cannot be made."""
        slot, part = self._slots[job.slot], job.row // self.sizes.part
        slot.parts[part] = _State.BAD if fault else _State.MADE
        if fault:
            slot.faults[part] = fault
        else:
            self._made += job.end - job.begin

    def release(self, holder: int, lease: int) -> None:
        """It reads there no more. A lease that it does not have is none of its business."""
        reader, slot = self._leases.get(lease, (None, None))
        if slot is not None and reader == holder:
            del self._leases[lease]
            slot.leases -= 1

    def reclaim(self, holder: int) -> None:
        """It is lost, or has left: what it waits for is of no interest, and what it reads may be read on."""
        self._wants = {name: want for name, want in self._wants.items() if want.holder != holder}
        for lease, (reader, slot) in list(self._leases.items()):
            if reader == holder:
                del self._leases[lease]
                slot.leases -= 1
                slot.is_doubted = True

    def _key(self, want: Want) -> _Key:
        return want.held_out, want.begin // self.sizes.rows

    def _parts(self, want: Want) -> range:
        """Of its slot, those in which it lies."""
        first = want.begin // self.sizes.rows * self.sizes.rows
        return range((want.begin - first) // self.sizes.part, (want.end - 1 - first) // self.sizes.part + 1)

    def _lease(self, want: Want, slot: _Slot) -> Grant:
        self._last_lease += 1
        slot.leases += 1
        self._leases[self._last_lease] = (want.holder, slot)
        self._handed += want.end - want.begin
        is_brief = sum(other.leases > 0 for other in self._slots) > len(self._slots) // 2
        return Grant(want, self._last_lease, slot.index, want.begin % self.sizes.rows, is_brief)

    @property
    def _window(self) -> range:
        """Numbers on the grid that are filled ahead."""
        if self._front is None:
            return range(0)
        first = self._front // self.sizes.rows
        last = -(-self._lengths[False] // self.sizes.rows)
        return range(first, min(last, first + max(1, len(self._slots) // 2)))

    def _ahead(self) -> Iterator[tuple[_Key, int]]:
        """What is filled ahead, and from which of its parts on."""
        for number in self._window:
            begin = number * self.sizes.rows
            yield (False, number), max(0, (self._front or 0) - begin) // self.sizes.part

    def _start(self, slot: _Slot, parts: range) -> Job | None:
        """Begin the first of these parts of which nothing is there."""
        part = next((part for part in parts if slot.parts[part] is _State.EMPTY), None)
        if part is None or slot.key is None:
            return None
        slot.parts[part] = _State.MAKING
        renews, slot.renews = slot.renews, False
        held_out, number = slot.key
        row = part * self.sizes.part
        begin = number * self.sizes.rows + row
        end = min(begin + self.sizes.part, (number + 1) * self.sizes.rows, self._lengths[held_out])
        return Job(slot.index, row, held_out, begin, end, renews)

    def _place(self, key: _Key, is_wanted: bool) -> _Slot | None:
        """A slot for that: an unused one, else the one that was asked for the longest ago. For what somebody waits for
        also one that was filled ahead, the furthest first."""
        wanted = {self._key(want) for want in self._wants.values()}
        window = self._window
        spare = []
        for slot in self._slots:
            if slot.leases or slot.key in wanted or _State.MAKING in slot.parts:
                continue
            is_ahead = slot.key is not None and not slot.key[0] and slot.key[1] in window
            if is_wanted or not is_ahead:
                # False before True: what is filled ahead goes last, and of it the furthest first.
                spare.append((is_ahead, -slot.key[1] if is_ahead and slot.key is not None else slot.used, slot))
        if not spare:
            return None
        slot = min(spare, key=lambda entry: entry[:2])[2]
        if slot.key is not None:
            del self._by_key[slot.key]
        self._by_key[key] = slot
        self._renewed += slot.is_doubted
        slot.renews, slot.is_doubted = slot.renews or slot.is_doubted, False
        slot.key, slot.used, slot.faults = key, self._clock, {}
        held_out, number = key
        rows = min(self.sizes.rows, self._lengths[held_out] - number * self.sizes.rows)
        slot.parts = [_State.EMPTY] * -(-rows // self.sizes.part)
        return slot
