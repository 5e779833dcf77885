"""What happens to a sibling on the way through a round, and what it does about it: the words of `round`. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

from distqat.averaging.group import Contact, Group, Invite, Invited, Join, JoinReply, Stale, Verdict, Vote
from distqat.errors import DistqatError
from distqat.ids import Endpoint, PeerId

# Events.


@dataclass(frozen=True)
class Begin:
    """The owner wants a round, and brings this."""

    join: Join


@dataclass(frozen=True)
class Looked:
    """Time has passed, and the directory has these siblings that may take part."""

    ready: Mapping[PeerId, Endpoint]


@dataclass(frozen=True)
class Joined:
    """A sibling waits here until the round has formed."""

    join: Join


@dataclass(frozen=True)
class Left:
    """It waits no more; `call` is that of its join."""

    peer: PeerId
    call: str


@dataclass(frozen=True)
class Called:
    """A sibling invites this one; answered by `Reply`."""

    invite: Invite


@dataclass(frozen=True)
class Departed:
    """A sibling has given its stage up."""

    peer: PeerId


class Standing(enum.Enum):
    """What an invited sibling turned out to be."""

    COMING = "coming"
    HELD_UP = "held up"
    """Will come, but its step has come to a standstill: nobody knows when."""
    ENGAGED = "engaged"
    """Takes part in the round elsewhere."""
    LEADING = "leading"
    """Forms this round itself, and comes before this one in the order."""
    AGAINST = "against"
    """Takes the round without this one, by a verdict that this one has not heard."""
    SILENT = "silent"
    """Does not answer in time; it may be slow."""
    UNREACHABLE = "unreachable"
    GONE = "gone"
    """Its process has ended."""
    AWAY = "away"
    """It has begun anew, or does something else now."""


@dataclass(frozen=True)
class Answered:
    """A sibling that was invited has answered, or has not."""

    contact: Contact
    standing: Standing
    reason: str = ""


@dataclass(frozen=True)
class Grouped:
    """The leader has formed the group."""

    group: Group


@dataclass(frozen=True)
class Outdated:
    """There is a better anchor, says the leader or an invited sibling."""

    stale: Stale


@dataclass(frozen=True)
class Declined:
    """The leader lives, but does not lead this one now."""

    reason: str


@dataclass(frozen=True)
class Unreached:
    """The leader cannot be reached; `is_gone`: its process has ended; `is_silent`: it answers nothing, or too late."""

    reason: str
    is_gone: bool = False
    is_silent: bool = False


@dataclass(frozen=True)
class Dismissed:
    """The leader has given the round up, or takes this sibling for one of another kind."""

    reason: str


@dataclass(frozen=True)
class Averaged:
    """The average is here, and the round would end with a state of this digest."""

    digest: str


@dataclass(frozen=True)
class Broken:
    """There will be no average; `lost` is to blame, if somebody is."""

    reason: str
    lost: str = ""


@dataclass(frozen=True)
class Voted:
    """A member has voted."""

    vote: Vote


@dataclass(frozen=True)
class Heard:
    """The leader has pronounced what became of the attempt."""

    verdict: Verdict


@dataclass(frozen=True)
class Moved:
    """Another state is committed here: of so many rounds, the last one by these members."""

    number: int
    digest: str
    members: tuple[PeerId, ...]
    elements: int
    """Of the fragments that synchronise in the next round."""


@dataclass(frozen=True)
class Missed:
    """The state of a donor could not be had."""

    donor: PeerId
    reason: str


@dataclass(frozen=True)
class Stopped:
    """The owner wants no round any more, or no time is left."""

    reason: str


@dataclass(frozen=True)
class StoodStill:
    """This process has done nothing for so many seconds, as if it had been stopped: it cannot know who was silent."""

    seconds: float


Event = (
    Begin
    | StoodStill
    | Looked
    | Joined
    | Left
    | Called
    | Departed
    | Answered
    | Grouped
    | Outdated
    | Declined
    | Unreached
    | Dismissed
    | Averaged
    | Broken
    | Voted
    | Heard
    | Moved
    | Missed
    | Stopped
)

# Actions. The first group is what this sibling is busy with: each ends the one before.


@dataclass(frozen=True)
class Ask:
    """Wait at that leader for its group; comes to Grouped, Outdated, Declined, Unreached or Dismissed.

    `patience`: it is Unreached when it has answered nothing for so many seconds.
    """

    leader: Contact
    join: Join
    patience: float = math.inf


@dataclass(frozen=True)
class Exchange:
    """Average with this group; comes to Averaged or Broken."""

    group: Group


@dataclass(frozen=True)
class Cast:
    """Tell the leader the vote; comes to Heard, Declined, Unreached or Dismissed. `patience` as for Ask."""

    leader: Contact
    vote: Vote
    patience: float = math.inf


@dataclass(frozen=True)
class Fetch:
    """Take the state of the donor; comes to Moved or Missed. Of `group` if its contributions are in it."""

    stale: Stale
    group: Group | None = None


@dataclass(frozen=True)
class Ring:
    """Invite the sibling, beside whatever else is done; comes to Answered or Outdated."""

    contact: Contact


@dataclass(frozen=True)
class Open:
    """This sibling leads an attempt of this group: votes come from now on."""

    group: Group


@dataclass(frozen=True)
class Release:
    """Let a sibling that waits here go, with this."""

    peer: PeerId
    reply: JoinReply | DistqatError


@dataclass(frozen=True)
class Reply:
    """The answer to an invitation."""

    reply: Invited | DistqatError


@dataclass(frozen=True)
class Pronounce:
    """The verdict on an attempt that this sibling leads; whoever asks later hears the same."""

    attempt: str
    verdict: Verdict


@dataclass(frozen=True)
class Conclude:
    """This sibling has nothing more to do with the attempt: its streams break."""

    attempt: str


@dataclass(frozen=True)
class Commit:
    """What was prepared and has this digest is the state from now on; comes to Moved."""

    digest: str


@dataclass(frozen=True)
class Report:
    """A sibling was lost to the round; or, `is_refused`, its contribution was."""

    peer: PeerId
    reason: str
    is_refused: bool = False


@dataclass(frozen=True)
class Finish:
    """The call is over: with what is committed now, or with nothing, for this reason."""

    failure: str = ""


Busy = Ask | Exchange | Cast | Fetch
Action = Busy | Ring | Open | Release | Reply | Pronounce | Conclude | Commit | Report | Finish
