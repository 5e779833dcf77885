"""What a sibling puts into a round, and what comes out of it.

Neither is ever there as one vector of fp32: a contribution is worked out from the anchor and the local values block by
block, while it is read, and an average is read out of the bytes in which it travelled. Encoded, both lie as their codec
lays out the whole vector; a chunk of it is cut out without a copy. A contribution is encoded as it is sent, so that the
first chunk leaves before the last one is worked out.

With codec `none` parameters travel as pseudo-gradients anchor - local, but in a plain round as they are; buffers always
as they are. A lossy codec would round whole numbers too coarsely, so with one everything travels as anchor - local.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distqat.averaging import loops, spans
from distqat.averaging.feedback import Feedback
from distqat.averaging.outer import EXACT, OuterState
from distqat.averaging.phases import Phase
from distqat.averaging.spans import BLOCK, Span
from distqat.errors import TensorError
from distqat.wire import codecs
from distqat.wire.codecs.codec import Floats
from distqat.wire.codecs.memory import SCRATCH
from distqat.wire.frames import aligned

ROW = 4096
"""Elements of one product of vectors: one of more than 10000 takes threads, and these belong to the computation."""


class Contribution:
    """Values that a sibling has learned since the anchor. Neither they nor the anchor may change while it lives."""

    def __init__(self, state: OuterState, local: torch.Tensor, how: Phase, feedback: Feedback) -> None:
        self.state = state
        self.how = how
        self.feedback = feedback
        self.norm = 0.0
        self.spans: Sequence[Span] = spans.spans(state.shapes, how)
        self.elements = local.numel()
        self._local: Floats = local.numpy()
        self._anchors: dict[int, Floats] = {index: state.parts[index].anchor.numpy() for index in how.fragments}
        self._residuals = {index: feedback.residual(index) for index in how.fragments}
        self._encoded: dict[str, _Encoded] = {}  # By codec; made once, whatever becomes of the attempts.

    def __repr__(self) -> str:
        return f"<Contribution to round {self.state.round}, {self.elements} elements, norm {self.norm:g}>"

    @classmethod
    def of(cls, state: OuterState, local: torch.Tensor, how: Phase, feedback: Feedback) -> Contribution:
        """What a sibling with these local values [num_elements] of the round's fragments contributes.

        Raises TensorError when a value is not finite.
        """
        contribution = cls(state, local, how, feedback)
        contribution.norm = contribution._measure()
        return contribution

    @property
    def has_residual(self) -> bool:
        """Whether something that earlier rounds have lost is in it."""
        return any(residual is not None for residual in self._residuals.values())

    def is_encoded(self, codec: str, begin: int = 0, end: int | None = None) -> bool:
        """Whether `encode` has nothing left to do for these elements."""
        if codec == EXACT:
            return True
        encoded = self._encoded.get(codec)
        return encoded is not None and next(encoded.missing(begin, self.elements if end is None else end), None) is None

    def encode(self, codec: str, begin: int = 0, end: int | None = None) -> memoryview | None:
        """Its bytes with that codec, of which those of elements `begin` to `end` are there, and maybe more.

        None with `none`, for which they are worked out whenever they are sent. Raises TensorError.
        """
        if codec == EXACT:
            return None
        coder = codecs.find(codec)
        encoded = self._encoded.get(codec)
        if encoded is None:
            # Two threads may come here; one of the two is kept, and both go on with that.
            data = aligned(coder.size(self.elements, torch.float32))
            encoded = self._encoded.setdefault(codec, _Encoded(data))
        for at in encoded.missing(begin, self.elements if end is None else end):
            block = SCRATCH.block[: min(BLOCK, self.elements - at)]
            self.read(at, block, is_exact=False)
            coder.encode_part(block, encoded.data, self.elements, at)
            encoded.there.add(at)
        return encoded.data

    def read(self, begin: int, out: Floats, is_exact: bool) -> None:
        """Fill with the elements from `begin` on as they travel with `none`, or with a lossy codec."""
        for span in spans.cut(self.spans, begin, begin + len(out), BLOCK):
            self._read(span, out[span.begin - begin : span.end - begin], is_exact)

    def _read(self, span: Span, out: Floats, is_exact: bool) -> None:
        own, residual = self._local[span.begin : span.end], self._residuals[span.fragment]
        if is_exact and (self.how.is_plain or not span.is_parameter):
            if residual is None:
                np.copyto(out, own)
            else:
                np.subtract(own, residual[span.within], out=out)
            return
        np.subtract(self._anchors[span.fragment][span.within], own, out=out)
        if residual is not None:
            np.add(out, residual[span.within], out=out)

    def _measure(self) -> float:
        """Euclidean norm of the parameters, after a look at every element."""
        squares = 0.0
        for span in spans.cut(self.spans, 0, self.elements, BLOCK):
            square = self._square(span)
            if not math.isfinite(square):
                raise TensorError("the local values hold NaN or infinity, or numbers too far from the anchor")
            squares += square if span.is_parameter else 0.0
        return math.sqrt(squares)

    def _square(self, span: Span) -> float:
        if self._residuals[span.fragment] is None:
            own = self._local[span.begin : span.end]
            return loops.squares_of_difference(self._anchors[span.fragment][span.within], own)
        piece = SCRATCH.block[: span.end - span.begin]
        self._read(span, piece, is_exact=False)
        return sum_of_squares(piece)


class _Encoded:
    """The bytes of a contribution, which come into being block by block of BLOCK elements, in any order.

    Should two threads work on one block, they write the same bytes.
    """

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.there: set[int] = set()  # First elements of the blocks that are done.

    def missing(self, begin: int, end: int) -> Iterator[int]:
        """First elements of the blocks that have some of these elements, and are not done."""
        return (at for at in range(begin - begin % BLOCK, end, BLOCK) if at not in self.there)


@dataclass(frozen=True, eq=False)
class Average:
    """The average of a group, as everyone in it holds it."""

    codec: str
    elements: int
    payload: memoryview
    """All of it, encoded with the codec; in a lossy one everything is a difference to the anchor."""
    bytes: int
    """Sent and received for it by this member."""
    residual: torch.Tensor | None = None
    """[elements] What this member's contribution and its slice lost in encoding, if that goes into the next round."""

    def read(self, begin: int, end: int, scratch: Floats) -> Floats:
        """See outer.Source. Raises MessageError for bytes that are no numbers."""
        if self.codec == EXACT:
            there: Floats = np.frombuffer(self.payload, np.float32)[begin:end]
            return there
        codec = codecs.find(self.codec)
        first, last = begin - begin % codec.block, min(end + -end % codec.block, self.elements)
        values = scratch[: last - first]
        codec.decode_part(self.payload, self.elements, first, values)
        return values[begin - first : end - first]

    @property
    def vector(self) -> torch.Tensor:
        """[elements] All of it, decoded."""
        return codecs.find(self.codec).decode(self.payload, torch.float32, (self.elements,))


def sum_of_squares(values: Floats) -> float:
    """Of a block. NaN or infinity if one of its numbers is, or if they are beyond all measure."""
    split = len(values) - len(values) % ROW
    rows, rest = values[:split].reshape(-1, 1, ROW), values[split:]
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.matmul(rows, rows.reshape(-1, ROW, 1)).sum(dtype=np.float64) + np.matmul(rest, rest)
    return float(squares)
