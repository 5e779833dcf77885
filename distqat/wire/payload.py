"""The bytes of a message's tensors on their way out: parts that lie wherever they were made, and are never joined.

What comes in is one memoryview instead, put together by `frames.Assembler`.
"""

from __future__ import annotations

from collections.abc import Sequence


class Payload:
    """Bytes in parts, one behind the other. Its length counts bytes, not parts."""

    __slots__ = ("_length", "parts")

    def __init__(self, parts: Sequence[memoryview] = ()) -> None:
        """`parts` are flat views of bytes."""
        self.parts = tuple(part for part in parts if len(part))
        self._length = sum(len(part) for part in self.parts)

    def __repr__(self) -> str:
        return f"<Payload {len(self)} bytes in {len(self.parts)} parts>"

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def cut(self, begin: int, end: int) -> list[memoryview]:
        """The views that hold bytes `begin` to `end`, without a copy."""
        views = []
        offset = 0
        for part in self.parts:
            view = part[max(begin - offset, 0) : max(end - offset, 0)]
            if len(view):
                views.append(view)
            offset += len(part)
        return views


NO_PAYLOAD = Payload()
