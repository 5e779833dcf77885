"""What the planner wants done: each can be told again without harm. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from distqat.ids import PeerId, PipelineId, Seat, StageIndex
from distqat.roles.checkpoint.words import Begin


@dataclass(frozen=True)
class Assign:
    """Give a stage to an expert."""

    peer: PeerId
    stage: StageIndex
    why: str


@dataclass(frozen=True)
class Follow:
    """Let a spare keep a warm copy of a stage, so that it can take it at once."""

    peer: PeerId
    stage: StageIndex
    why: str


@dataclass(frozen=True)
class Form:
    """Let a trainer drive this route; id None: a new pipeline."""

    id: PipelineId | None
    route: tuple[Seat, ...]
    trainer: PeerId
    why: str
    begin: Begin | None = None
    """Where a new pipeline goes on; None: at its first step."""


@dataclass(frozen=True)
class Dissolve:
    """Stop a pipeline; its experts are free for others."""

    id: PipelineId
    why: str


Action = Assign | Follow | Form | Dissolve
