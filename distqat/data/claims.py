"""What is told of a ledger: claims, answers to those who want one, and all of it as it is written. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

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
    reached: tuple[tuple[str, int], ...] = ()
    """By pipeline the last step that is committed, also of those that the `StepLog` has forgotten."""

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
            return cls(**{**tree, **lists, **claims})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"they are no ledger: {error}") from None
