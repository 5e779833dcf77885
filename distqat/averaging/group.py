"""The words of a round, as values: who joins, the group that forms, the votes and the verdict. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.ids import Endpoint, PeerId, RunId, StageIndex, StepRef


@dataclass(frozen=True)
class RoundRef:
    """Which round is meant; `number` rounds were committed before it."""

    run: RunId
    stage: StageIndex
    number: int

    def __str__(self) -> str:
        return f"round {self.number} of stage {self.stage}"


@dataclass(frozen=True)
class Contact:
    """A sibling, and where it answers."""

    peer: PeerId
    endpoint: Endpoint


@dataclass(frozen=True)
class Doubt:
    """An attempt at the round of which a sibling has not heard what became."""

    digest: str
    """Of the state that it would end with; empty if this sibling does not hold it, but others may."""
    members: tuple[Contact, ...]
    """Of all groups that may have committed it."""


@dataclass(frozen=True)
class Rates:
    """Bytes per second that a sibling's links were measured to carry; 0: not known."""

    up: float = 0.0
    down: float = 0.0


@dataclass(frozen=True)
class Join:
    """A sibling is ready for a round; with zero samples it only receives."""

    round: RoundRef
    peer: PeerId
    endpoint: Endpoint
    samples: int
    digest: str
    """Of its whole outer state before the round."""
    elements: int
    """Of the fragments that synchronise in the round."""
    norm: float = 0.0
    """Euclidean norm of the parameters of its contribution."""
    rates: Rates = Rates()
    codec: str = "none"
    """What it can send best: the setting, or what `auto` comes to here."""
    call: str = ""
    """Tells this call from every other of the sibling; the same call twice counts once."""
    has_voice: bool = True
    """It was in the group of the round before and has not been restarted since: only then it decides with others."""
    doubt: Doubt | None = None
    """What may have become of the round without its knowledge."""
    contacts: tuple[Contact, ...] = ()
    """Siblings of the group of the round before that its directory has lost."""
    origins: tuple[StepRef, ...] = ()
    """The last step of each pipeline that its contribution stands for."""

    @property
    def contact(self) -> Contact:
        """Who it is, and where."""
        return Contact(self.peer, self.endpoint)


@dataclass(frozen=True)
class Member:
    """One member of a formed group, and the slice of elements that it adds up."""

    peer: PeerId
    endpoint: Endpoint
    samples: int
    begin: int
    end: int
    norm: float = 0.0
    """As it said when it joined; owners refuse a slice that is longer."""
    factor: float = 1.0
    """By which its contribution is scaled down; 1: not at all."""
    origins: tuple[StepRef, ...] = ()
    """As it said when it joined; opaque here, and part of the state that the round ends with."""

    @property
    def elements(self) -> int:
        """Length of its slice."""
        return self.end - self.begin

    @property
    def contact(self) -> Contact:
        """Who it is, and where."""
        return Contact(self.peer, self.endpoint)


@dataclass(frozen=True)
class Group:
    """A formed group. Sums are taken in the order of its members; `attempt` tells it from every other."""

    attempt: str
    members: tuple[Member, ...]
    codec: str = "none"
    """Of the contributions and of their average; a lone member sends nothing, so its codec is none."""
    settles: str = ""
    """Digest of a result that some members hold already: nothing is exchanged, it is voted on again. Else empty."""

    @property
    def contributors(self) -> tuple[Member, ...]:
        """The members whose pseudo-gradients are in the average."""
        return tuple(member for member in self.members if member.samples > 0)

    @property
    def origins(self) -> tuple[StepRef, ...]:
        """Of all contributors, in their order."""
        return tuple(origin for member in self.contributors for origin in member.origins)

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
class Invited:
    """What an invited sibling will do."""

    joining: bool
    reason: str = ""
    leading: bool = False
    held_up: bool = False
    """It will, but its step has come to a standstill: nobody knows when."""


@dataclass(frozen=True)
class JoinReply:
    """The group, or a better anchor; exactly one is there."""

    group: Group | None = None
    stale: Stale | None = None


@dataclass(frozen=True)
class Leave:
    """A sibling gives its stage up: whatever it has voted for, nobody will hear of it from there."""

    run: RunId
    stage: StageIndex
    peer: PeerId


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
    """What became of an attempt."""

    committed: bool
    reason: str = ""
    lost: tuple[str, ...] = ()
    """Members that the next attempt does without."""
    blamed: tuple[str, ...] = ()
    """Members that are there, and whose contributions the next attempt does without."""
    digest: str = ""
    """Of what was committed."""
    donor: str = ""
    """A member that holds it."""
