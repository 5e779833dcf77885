"""The weighted mean of a slice, the same bits wherever it is computed.

sum_i w_i x_i in fp32, taken in the order of the members, each product and each sum rounded by itself, whatever the
order in which the contributions came. The weight of a member is its samples over the samples of all contributors, times
its factor for parameters, worked out in fp64 and then rounded to fp32.

What travels is x as it was encoded and decoded. What the owner itself brings never travels, so there x is what it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from distqat.averaging import spans
from distqat.averaging.blame import AttemptError, blaming
from distqat.averaging.contribution import Contribution, sum_of_squares
from distqat.averaging.group import Group, Member
from distqat.averaging.outer import EXACT, OuterState
from distqat.averaging.phases import Phase
from distqat.averaging.spans import BLOCK, Span
from distqat.errors import TensorError
from distqat.ids import short
from distqat.wire import codecs
from distqat.wire.codecs.codec import Floats
from distqat.wire.codecs.loops import add_floats
from distqat.wire.codecs.memory import empty

NOTHING = -0.0
"""What leaves every number as it is when it is added, -0.0 too."""

SLACK = 1e-3
"""By how much a contribution may be longer than its sender said: sums of squares are rounded."""


class Reducer:
    """Adds up the slice of one owner, chunk after chunk, and encodes the mean. Block by block, so all stays in caches.

    What is refused is named: what is not finite, and a slice that is longer (as a vector) than its whole contribution
    was said to be.
    """

    def __init__(
        self, group: Group, mine: Member, state: OuterState, how: Phase, contribution: Contribution | None
    ) -> None:
        self.mine = mine
        self.how = how
        self.contribution = contribution
        self.contributors = group.contributors
        self.codec = codecs.find(group.codec)
        self.elements = group.members[-1].end
        self.error: Floats | None = None  # [slice] What encoding the mean has lost; None unless it is wanted.
        if contribution is not None and contribution.feedback.share(group.codec):
            self.error = np.zeros(mine.elements, np.float32)
        self._state = state
        self._spans = spans.spans(state.shapes, how)
        self._is_plain = how.is_plain and group.codec == EXACT  # Values travel, not differences.
        self._shares = {member.peer: member.samples / group.samples for member in self.contributors}
        self._squares = dict.fromkeys(self._shares, 0.0)  # Of the parameters of each contributor so far.
        self._sum, self._part, self._moved = (np.empty(BLOCK, np.float32) for _ in range(3))

    def reduce(self, begin: int, end: int, parts: Sequence[memoryview | None], payload: memoryview) -> None:
        """Average elements `begin` to `end` of the slice's vector, and write them encoded into the whole `payload`.

        `parts` are their bytes from each contributor, in order; None: this member's own. Raises AttemptError that names
        who is to blame.
        """
        for at in range(begin, end, BLOCK):
            until = min(at + BLOCK, end)
            mean = self._mean(begin, at, until, end, parts)
            try:
                self.codec.encode_part(mean, payload, self.elements, at)
            except TensorError as error:
                raise AttemptError(f"the average cannot be sent: {error.reason}") from None
            if self.error is not None:
                self._keep_error(mean, payload, at)

    def _mean(self, begin: int, at: int, until: int, end: int, parts: Sequence[memoryview | None]) -> Floats:
        total = self._sum[: until - at]
        total.fill(NOTHING)
        pieces = list(spans.cut(self._spans, at, until, BLOCK))
        for member, data in zip(self.contributors, parts, strict=True):
            with blaming(member):
                if data is not None and len(pieces) == 1 and not (self._is_plain and pieces[0].is_parameter):
                    # All of it in one visit to memory.
                    share = self._share(member, pieces[0])
                    square = self.codec.add_part(data, end - begin, at - begin, share, total)
                    self._check(member, square, pieces[0].is_parameter)
                else:
                    self._add(member, pieces, at, self._values(begin, at, until, end, data), data is None, total)
        return total

    def _values(self, begin: int, at: int, until: int, end: int, data: memoryview | None) -> Floats:
        """What a member has there. None: this member, and since that never travels, nothing of it has to be lost."""
        values = self._part[: until - at]
        if data is not None:
            self.codec.decode_part(data, end - begin, at - begin, values)
        else:
            assert self.contribution is not None
            self.contribution.read(at, values, is_exact=self.codec.name == EXACT)
        return values

    def _add(
        self, member: Member, pieces: Sequence[Span], at: int, values: Floats, is_own: bool, total: Floats
    ) -> None:
        """Check the values, each piece with its own weight, and add them."""
        for piece in pieces:
            place, part = (whole[piece.begin - at : piece.end - at] for whole in (total, values))
            is_moved = self._is_plain and piece.is_parameter
            if is_moved and not (is_own and member.factor == 1.0):
                self._clip(member, piece, part, is_own)
            square = add_floats(part, self._share(member, piece), place)
            if not is_own and not is_moved:
                self._check(member, square, piece.is_parameter)

    def _share(self, member: Member, piece: Span) -> float:
        """The weight of what travels."""
        is_clipped = piece.is_parameter and not self._is_plain
        return self._shares[member.peer] * (member.factor if is_clipped else 1.0)

    def _clip(self, member: Member, piece: Span, values: Floats, is_own: bool) -> None:
        """Of values that travel as they are: look at the way from the anchor, and shorten it by the member's factor."""
        anchor = self._state.parts[piece.fragment].anchor.numpy()[piece.within]
        moved = np.subtract(anchor, values, out=self._moved[: len(values)])
        if not is_own:
            self._check(member, sum_of_squares(moved), True)
        if member.factor < 1.0:
            np.multiply(moved, np.float32(member.factor), out=moved)
            np.subtract(anchor, moved, out=values)

    def _check(self, member: Member, square: float, is_parameter: bool) -> None:
        """Refuse a piece with this sum of squares."""
        if not math.isfinite(square):
            raise AttemptError(f"the contribution of {short(member.peer)} holds NaN or infinity", member.peer)
        if is_parameter:
            self._squares[member.peer] += square
            norm, most = math.sqrt(self._squares[member.peer]), member.norm * self.codec.growth * (1.0 + SLACK)
            if norm > most:
                raise AttemptError(
                    f"the contribution of {short(member.peer)} is longer than it said: {norm:g} of {member.norm:g} "
                    "in one slice",
                    member.peer,
                )

    def _keep_error(self, mean: Floats, payload: memoryview, at: int) -> None:
        assert self.error is not None
        decoded = self._part[: len(mean)]
        self.codec.decode_part(payload, self.elements, at, decoded)
        begin = at - self.mine.begin
        np.subtract(mean, decoded, out=self.error[begin : begin + len(mean)])

    @property
    def has_residual(self) -> bool:
        """Whether what is lost goes into this member's next contribution."""
        return self.error is not None

    def residual(self) -> torch.Tensor:
        """[num_elements] What goes into this member's next contribution if the round commits; after the last `reduce`.

        Its contribution less what was sent of it, and in its own slice, of which nothing is sent, what the mean lost
        divided by the weight that it has; of both the share that is fed back.
        """
        contribution, error = self.contribution, self.error
        assert contribution is not None
        assert error is not None
        out = empty((self.elements,), torch.float32)
        left: Floats = out.numpy()
        for begin, end in ((0, self.mine.begin), (self.mine.end, self.elements)):
            for at in range(begin, end, BLOCK):
                block = left[at : min(at + BLOCK, end)]
                sent = self._part[: len(block)]
                encoded = contribution.encode(self.codec.name, at, at + len(block))
                assert encoded is not None
                contribution.read(at, block, is_exact=False)
                self.codec.decode_part(encoded, self.elements, at, sent)
                np.subtract(block, sent, out=block)
        np.divide(error, np.float32(self._shares[self.mine.peer]), out=left[self.mine.begin : self.mine.end])
        share = contribution.feedback.share(self.codec.name)
        if share < 1.0:
            np.multiply(left, np.float32(share), out=left)
        return out
