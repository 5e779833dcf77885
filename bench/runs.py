"""What one round of a group has cost, whoever took it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One round of a group, ours or another's."""

    seconds: float
    """From the first call to the last return."""
    cpu: float
    """Seconds, of all processes."""
    wire: int
    """Bytes that left an interface, TCP and all."""
    has_succeeded: bool
    """All have the average of all (after a kill: all that are left have one of at least these)."""
    num_results: int
    """Different ones; 0 where nobody looked."""
    sent: int = 0
    """Bytes of messages, of all; 0 where nobody counts."""
    formed: float | None = None
    """Seconds from the last call to the first frame of the exchange; None where nobody looks."""
    grown: int = 0
    """Bytes by which a process grew meanwhile: the one that grew most."""
    averaging: float | None = None
    """Seconds of the average alone, without pseudo-gradients and the outer step; None where nobody looks."""
