"""What is told of a ledger: claims, answers to those who want one, and all of it as it is written. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass

from distqat.data.intervals import Interval
from distqat.errors import StateError


@dataclass(frozen=True)
class Claim:
    """Positions [begin, end) that belong to a pipeline; `id` counts from 1."""

    id: int
    pipeline: str
    begin: int
    end: int
    step: int = 0
    """Of the pipeline, for which they are; 0: unknown."""

    @property
    def samples(self) -> int:
        """How many positions it holds."""
        return self.end - self.begin

    def meets(self, other: Claim) -> bool:
        """Whether both hold some position."""
        return self.begin < other.end and other.begin < self.end


@dataclass(frozen=True)
class ClaimAnswer:
    """What a request for samples came to; without a claim, `reason` says why."""

    claim: Claim | None
    is_finished: bool = False
    reason: str = ""
    serial: int = 0


@dataclass(frozen=True)
class LedgerSnapshot:
    """Everything a ledger knows, as it is kept on disk or handed to another client."""

    budget: int
    num_claims: int
    doubled: int
    committed: tuple[Interval, ...]
    claims_committed: tuple[Interval, ...]
    claims_given_back: tuple[Interval, ...]
    open: tuple[Claim, ...]
    released: tuple[Claim, ...]
    last: tuple[tuple[str, int, int], ...]
    skipped: tuple[Interval, ...] = ()
    """Positions that were given up: nobody trains on them."""
    steps: str = ""
    """What the `StepLog` holds, as it is written."""
    known: tuple[tuple[str, int, int], ...] = ()
    """Steps whose samples are committed, also those that the `StepLog` has forgotten: pipeline, first step, and the one
    after the last."""

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LedgerSnapshot:
        """What `to_json` wrote. Raises StateError."""
        try:
            tree = json.loads(text)
            claims = {name: tuple(Claim(**claim) for claim in tree.pop(name)) for name in ("open", "released")}
            lists = {name: tuple(map(tuple, value)) for name, value in tree.items() if isinstance(value, list)}
            books = cls(**{**tree, **lists, **claims})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"they are no ledger: {error}") from None
        books._check()
        return books

    def _check(self) -> None:
        """Raises StateError if something in it is of another kind than it should be."""
        intervals = (self.committed, self.claims_committed, self.claims_given_back, self.skipped)
        are_fit = [
            _fits((self.budget, self.num_claims, self.doubled), int, int, int),
            *(_fits(interval, int, int) for found in intervals for interval in _entries(found)),
            *(_fits(astuple(claim), int, str, int, int, int) for claim in (*self.open, *self.released)),
            *(_fits(entry, str, int, int) for found in (self.last, self.known) for entry in _entries(found)),
            isinstance(self.steps, str),
        ]
        if not all(are_fit):
            raise StateError("they are no ledger: numbers and names are not where they should be")


def claims_to_json(claims: Iterable[Claim]) -> str:
    """As text."""
    return json.dumps([astuple(claim) for claim in claims], separators=(",", ":"))


def claims_from_json(text: str) -> tuple[Claim, ...]:
    """What `claims_to_json` wrote. Raises StateError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise StateError(f"they are no claims: {error}") from None
    if not isinstance(found, list) or not all(_fits(entry, int, str, int, int, int) for entry in found):
        raise StateError("they are no claims: numbers and names are not where they should be")
    return tuple(Claim(*entry) for entry in found)


def _entries(value: object) -> Iterable[object]:
    """Of what should be a row of entries; one that is none if it is something else."""
    return value if isinstance(value, tuple) else (None,)


def _fits(entry: object, *kinds: type) -> bool:
    """Whether it is a row of exactly these kinds, its numbers none below zero."""
    if not isinstance(entry, (tuple, list)) or [type(value) for value in entry] != list(kinds):
        return False
    return all(value >= 0 for value in entry if isinstance(value, int))
