"""What one call of `synchronise` knows: what it contributes, and whom it has lost on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from distqat.averaging.group import Group
from distqat.averaging.outer import OuterState
from distqat.errors import DistqatError, RefusedError, WrongRunError
from distqat.ids import PeerId

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What a round would end with; committed only when the leader says so."""

    state: OuterState
    group: Group
    bytes: int
    """Sent and received for it by this member."""


@dataclass
class Effort:
    """One way to a committed round, over as many attempts as it takes."""

    local: torch.Tensor
    """Local values [num_elements]; not changed."""
    samples: int
    """That they stand for; 0 once this sibling had to catch up."""
    began: float
    report_lost: Callable[[PeerId, str], None]
    contribution: torch.Tensor | None = None
    """What travels [num_elements]; None before the first attempt, and when there is nothing to contribute."""
    prepared: Prepared | None = None
    """What this sibling last voted for; None when nothing is in doubt."""
    lost: set[PeerId] = field(default_factory=set)
    """Siblings that this round does not wait for."""
    declined: set[PeerId] = field(default_factory=set)
    """Siblings that did not lead when asked."""
    failures: int = 0
    """Attempts that came to nothing."""

    def lose(self, peer: PeerId, error: DistqatError) -> None:
        """Go on without the sibling; its loss is reported unless it only declines."""
        if peer not in self.lost:
            self.lost.add(peer)
            if not isinstance(error, RefusedError | WrongRunError):
                self.report_lost(peer, error.reason)

    def heard_from(self, peer: PeerId) -> None:
        """The sibling is there after all."""
        self.lost.discard(peer)
        self.declined.discard(peer)

    def forget_contribution(self) -> None:
        """The local values belong to an anchor that is gone: from here on this sibling only receives."""
        self.samples = 0
        self.contribution = None
        self.prepared = None
