"""The words of a round, short to write."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distqat.averaging.group import Join, RoundRef, Vote
from distqat.averaging.outer import OuterState, Part
from distqat.averaging.spans import Shape
from distqat.ids import Endpoint, PeerId
from tests.averaging.swarm import RUN, STAGE


def round_ref(number: int = 0) -> RoundRef:
    return RoundRef(RUN, STAGE, number)


def join(name: str, number: int = 0, samples: int = 1, digest: str = "same") -> Join:
    return Join(round_ref(number), PeerId(name), Endpoint(name, 1), samples, digest, 10)


def prepared(name: str, digest: str = "same") -> Vote:
    return Vote("x", PeerId(name), True, digest)


def failed(name: str, reason: str = "it broke", lost: str = "") -> Vote:
    return Vote("x", PeerId(name), False, "", reason, lost)


def founding(local: torch.Tensor, num_parameters: int) -> OuterState:
    """Fresh numbers of a stage of one fragment."""
    return OuterState.founding(local, [Shape(num_parameters, local.numel())])


def committed(anchor: torch.Tensor, momentum: torch.Tensor, number: int, members: Sequence[str] = ()) -> OuterState:
    """The state of a stage of one fragment."""
    return OuterState.of([Part.of(anchor, momentum)], number, [PeerId(name) for name in members])
