"""What a peer's script looks like, for tests."""

from __future__ import annotations

import os
import sys

from bench.peers.answering import answer


class Abacus:
    """Counts."""

    def add(self, left: int, right: int) -> list[int]:
        print("a library that talks")
        os.system("echo a process that talks")
        return [left + right, len(sys.argv), os.getpid()]

    def fail(self) -> None:
        raise ValueError("a bead is missing")

    def hang(self) -> None:
        sys.stdin.read()


if __name__ == "__main__":
    answer(Abacus())
