"""A whole round in one process: contributions, the owners of all slices, one average, the outer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distqat.averaging import outer, slices
from distqat.averaging.contribution import Average, Contribution
from distqat.averaging.feedback import Feedback
from distqat.averaging.group import Group, Member
from distqat.averaging.outer import OuterState
from distqat.averaging.phases import Phase
from distqat.averaging.reduce import Reducer
from distqat.ids import Endpoint, PeerId
from distqat.wire import codecs


class Owners:
    """Siblings with these local values; who has no samples only owns a slice."""

    def __init__(
        self,
        state: OuterState,
        locals_: Sequence[torch.Tensor],
        samples: Sequence[int],
        how: Phase,
        codec: str = "none",
        factors: Sequence[float] = (),
    ) -> None:
        self.state = state
        self.how = how
        self.coder = codecs.find(codec)
        self.contributions = [Contribution.of(state, local, how, Feedback(0.0)) for local in locals_]
        self.elements = self.contributions[0].elements
        bounds = slices.cut(self.elements, [1 / len(samples)] * len(samples), self.coder.block)
        members = [
            Member(PeerId(f"s{at}"), Endpoint("x", 1), count, begin, end, own.norm, factor)
            for at, (count, (begin, end), own, factor) in enumerate(
                zip(samples, bounds, self.contributions, factors or [1.0] * len(samples), strict=True)
            )
        ]
        self.group = Group("x", tuple(members), codec)

    def reducer(self, owner: int) -> Reducer:
        own = self.contributions[owner] if self.group.members[owner].samples else None
        return Reducer(self.group, self.group.members[owner], self.state, self.how, own)

    def encoded(self, index: int) -> memoryview:
        """All of a contribution, as it travels."""
        contribution = self.contributions[index]
        encoded = contribution.encode(self.coder.name)
        if encoded is None:
            exact = torch.empty(self.elements)
            contribution.read(0, exact.numpy(), is_exact=True)
            encoded = self.coder.encode(exact)
        return encoded

    def parts(self, owner: int, begin: int, end: int) -> list[memoryview | None]:
        """What the owner gets of these elements, in the order of the members; its own it has."""
        return [
            memoryview(b"".join(self.coder.cut(self.encoded(index), self.elements, begin, end)))
            if index != owner
            else None
            for index, member in enumerate(self.group.members)
            if member.samples
        ]

    def average(self, chunk: int = 1 << 20) -> Average:
        """What the owners make of all slices, chunk by chunk."""
        payload = memoryview(bytearray(self.coder.size(self.elements, torch.float32)))
        for owner, mine in enumerate(self.group.members):
            reducer = self.reducer(owner)
            for begin in range(mine.begin, mine.end, chunk):
                end = min(begin + chunk, mine.end)
                reducer.reduce(begin, end, self.parts(owner, begin, end), payload)
        return Average(self.coder.name, self.elements, payload, bytes=0)

    def after(self) -> OuterState:
        """The state that the round ends with."""
        return outer.apply(self.state, self.average(), self.how)
