"""How an attempt fails: with a reason, and the name of the one to blame if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distqat.averaging.group import Member
from distqat.errors import DistqatError, RoundError, StaleError
from distqat.ids import PeerId, short


class AttemptError(RoundError):
    """An attempt failed; `lost` is the member to blame, if there is one."""

    def __init__(self, reason: str, lost: PeerId | None = None) -> None:
        super().__init__(reason)
        self.lost = lost


@contextmanager
def blaming(member: Member) -> Iterator[None]:
    """Turn what goes wrong with a member into an AttemptError that blames it, unless it only passes on a failure."""
    try:
        yield
    except AttemptError:
        raise
    except (RoundError, StaleError) as error:
        raise AttemptError(error.reason) from None
    except DistqatError as error:
        raise AttemptError(f"{short(member.peer)}: {error.reason}", member.peer) from None
