"""Roles of one daemon to each other: a call, without an address, a record or a message."""

from __future__ import annotations

from typing import Protocol

from distqat.data.claims import Claim
from distqat.ids import PeerId, PipelineId, Seat
from distqat.roles.checkpoint.words import Begin
from distqat.roles.status import PipelineStatus


class DrivingRole(Protocol):
    """The trainer, as the client's orders reach it."""

    async def drive(
        self, pipeline: PipelineId, epoch: int, route: tuple[Seat, ...], in_order: bool, begin: Begin | None
    ) -> PipelineStatus:
        """Drive this route from now on, or after the steps under way; an empty one ends the pipeline. Raises
        RefusedError, StaleError."""
        ...

    def booked(self) -> tuple[Claim, ...]:
        """What was booked of the pipelines that are driven here."""
        ...


class JudgingRole(Protocol):
    """The client, as those report to it who believe that a peer is lost."""

    def suspect(self, peer: PeerId) -> bool:
        """Look at the peer at once; False: it plans nothing, and judges nobody."""
        ...
