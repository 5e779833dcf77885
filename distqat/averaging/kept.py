"""Committed averages as they travelled, kept for siblings that missed their rounds. Pure.

Who holds the state from before a round and its average holds the state after it, to the bit: `outer.apply` comes to
the same wherever it runs. So a sibling that missed a few rounds needs their averages only, encoded as they were: a
fraction of the whole state (`sync.kept_rounds` of them are kept, and no more bytes than the state itself has).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from distqat.averaging import outer
from distqat.averaging.contribution import Average
from distqat.averaging.outer import OuterState
from distqat.averaging.phases import Phase
from distqat.errors import MessageError, StateError
from distqat.ids import PeerId, StepRef
from distqat.wire import codecs


@dataclass(frozen=True, eq=False)
class Kept:
    """The average of one committed round."""

    round: int
    """Its number: rounds committed before it."""
    before: str
    """Digest of the state that it was applied to."""
    digest: str
    """Digest of the state after it."""
    members: tuple[PeerId, ...]
    """Of the group that committed it, in order."""
    codec: str
    """Of the payload."""
    payload: memoryview
    """The average of the round's fragments, encoded with the codec as one vector."""
    origins: tuple[StepRef, ...] = ()
    """Steps that the contributions stood for, in their order."""

    def __repr__(self) -> str:
        return f"<Kept round {self.round} {self.codec} {len(self.payload)} bytes>"


class Shelf:
    """The averages of the latest rounds, without a gap: `most` of them, and at most so many bytes."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self.most_bytes = most_bytes
        self._rounds: list[Kept] = []  # Oldest first; each begins with the state that the one before ended with.

    def __repr__(self) -> str:
        return f"<Shelf {len(self._rounds)} rounds, {self.nbytes} bytes>"

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._rounds)

    @property
    def nbytes(self) -> int:
        """Of all payloads."""
        return sum(len(kept.payload) for kept in self._rounds)

    def append(self, kept: Kept) -> None:
        """The latest round; what it does not continue is forgotten, and so is the oldest where room is needed."""
        if self._rounds and self._rounds[-1].digest != kept.before:
            self._rounds.clear()
        self._rounds.append(kept)
        while len(self._rounds) > self.most or self.nbytes > self.most_bytes:
            del self._rounds[0]

    def since(self, number: int, digest: str) -> tuple[Kept, ...]:
        """All rounds from that number on for who holds the state of that digest; none if the first is not here."""
        for index, kept in enumerate(self._rounds):
            if (kept.round, kept.before) == (number, digest):
                return tuple(self._rounds[index:])
        return ()


def replay(state: OuterState, kept: Kept, how: Phase) -> OuterState:
    """The state after the round. Raises StateError if it is not what was committed, MessageError for garbage."""
    if (state.round, state.digest) != (kept.round, kept.before):
        raise StateError(f"the average of round {kept.round} belongs to another state than that of round {state.round}")
    after = apply(state, kept, how)
    if after.digest != kept.digest:
        raise StateError(f"round {kept.round} replayed does not end with its digest")
    return after


def apply(state: OuterState, kept: Kept, how: Phase) -> OuterState:
    """The state after the round, whatever its digest. Raises MessageError when state and average do not fit."""
    elements = sum(state.parts[index].shape.num_elements for index in how.fragments)
    if len(kept.payload) != encoded_bytes(kept.codec, elements):
        raise MessageError(f"an average of {elements} elements that takes {len(kept.payload)} bytes with {kept.codec}")
    average = Average(kept.codec, elements, kept.payload, bytes=0)
    return outer.apply(state, average, how, kept.members, origins=kept.origins)


def encoded_bytes(codec: str, elements: int) -> int:
    """Bytes of an average of so many elements. Raises MessageError for a codec that does not exist."""
    if codec not in codecs.names():
        raise MessageError(f"unknown codec '{codec}' of an average")
    return codecs.find(codec).size(elements, torch.float32)
