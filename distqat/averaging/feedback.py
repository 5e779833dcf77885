"""Error feedback: of what a lossy codec loses of a contribution, a share goes into the sibling's next one.

Seide et al. 2014; Karimireddy et al. 2019 (arXiv:1901.09847), where all of it does. Here a sibling begins the next one
at the anchor, where it learns some of what was lost once more, and all of it would count that twice. The residual of a
fragment changes only when a round of it commits; a newcomer has none. What the owner of a slice loses when it encodes
the mean goes into its own residual, divided by its weight, so that the next mean has it back. All of it can be carried
into a checkpoint and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch

from distqat.averaging import outer
from distqat.wire.codecs.codec import Floats

if TYPE_CHECKING:
    from distqat.averaging.contribution import Average, Contribution

COARSEST = "int2"
"""The one codec that loses enough for feedback to matter."""

HALF = 0.5
"""With `auto`: learns as well as without, and nothing is lost for good (docs/benchmarks.md, diloco)."""


class Feedback:
    """The residuals of one sibling, by fragment."""

    def __init__(self, setting: Literal["auto"] | float = "auto") -> None:
        self.setting = setting
        self._residuals: dict[int, torch.Tensor] = {}  # [num_elements] of each fragment that has one.

    def __repr__(self) -> str:
        return f"<Feedback {self.setting}, residuals of {len(self._residuals)} fragments>"

    def share(self, codec: str) -> float:
        """Of what this codec loses, how much is to be kept: 0 to 1."""
        if codec == "none":
            return 0.0
        if self.setting == "auto":
            return HALF if codec == COARSEST else 0.0
        return self.setting

    def residual(self, fragment: int) -> Floats | None:
        """What earlier rounds have lost of the fragment [num_elements]; None: nothing. Not to be changed."""
        residual = self._residuals.get(fragment)
        return residual.numpy() if residual is not None else None

    def commit(self, contribution: Contribution | None, average: Average) -> None:
        """The round of this contribution is committed: its residuals are in the average, and new ones begin."""
        if contribution is None:
            return
        fragments = contribution.how.fragments
        for fragment in fragments:
            self._residuals.pop(fragment, None)
        if average.residual is not None:
            shapes = [contribution.state.parts[fragment].shape for fragment in fragments]
            for fragment, (residual, _) in zip(fragments, outer.split(average.residual, shapes), strict=True):
                self._residuals[fragment] = residual

    def clear(self) -> None:
        """The anchor is another one now: what was lost on the way to the old one means nothing to it."""
        self._residuals.clear()

    def save(self) -> dict[int, torch.Tensor]:
        """The residuals by fragment, for a checkpoint."""
        return dict(self._residuals)

    def load(self, residuals: Mapping[int, torch.Tensor]) -> None:
        """Take the residuals of a checkpoint, which belong to the anchor that is committed now."""
        self._residuals = dict(residuals)
