"""The words of a round, as values: who joins, the group that forms, the votes and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.ids import Endpoint, PeerId, RunId, StageIndex


@dataclass(frozen=True)
class RoundRef:
    """Which round is meant; `number` rounds were committed before it."""

    run: RunId
    stage: StageIndex
    fragment: int
    number: int

    def __str__(self) -> str:
        return f"round {self.number} of stage {self.stage}"


@dataclass(frozen=True)
class Join:
    """A sibling is ready for a round; with zero samples it only receives."""

    round: RoundRef
    peer: PeerId
    endpoint: Endpoint
    samples: int
    digest: str
    elements: int


@dataclass(frozen=True)
class Member:
    """One member of a formed group, and the slice of elements that it adds up."""

    peer: PeerId
    endpoint: Endpoint
    samples: int
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """Length of its slice."""
        return self.end - self.begin


@dataclass(frozen=True)
class Group:
    """A formed group. Sums are taken in the order of its members; `attempt` tells it from every other."""

    attempt: str
    members: tuple[Member, ...]

    @property
    def contributors(self) -> tuple[Member, ...]:
        """The members whose pseudo-gradients are in the average."""
        return tuple(member for member in self.members if member.samples > 0)

    @property
    def samples(self) -> int:
        """Samples of all contributors."""
        return sum(member.samples for member in self.members)

    def find(self, peer: str) -> Member | None:
        """The member of that name."""
        return next((member for member in self.members if member.peer == peer), None)


@dataclass(frozen=True)
class Stale:
    """The asker's anchor is not the group's; `donor` holds the right one, of that round and digest."""

    donor: PeerId
    endpoint: Endpoint
    round: int
    digest: str


@dataclass(frozen=True)
class Invite:
    """A round is forming at its leader."""

    round: RoundRef
    leader: PeerId
    endpoint: Endpoint


@dataclass(frozen=True)
class Vote:
    """What an attempt came to at one member: `digest` of the state it would end with, or why there is none."""

    attempt: str
    peer: PeerId
    prepared: bool
    digest: str = ""
    reason: str = ""
    lost: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of an attempt; `lost` are the members that the next one does without."""

    committed: bool
    reason: str = ""
    lost: tuple[str, ...] = ()
