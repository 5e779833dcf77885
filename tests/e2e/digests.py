"""What siblings say that they have committed, over a whole test."""

from __future__ import annotations

from collections import defaultdict

from tests.e2e.swarm import Status, seated


class Digests:
    """By stage and round, the digests that were seen in receipts."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, int], set[str]] = defaultdict(set)

    def look(self, status: Status) -> None:
        """Note what this status tells; a receipt is shown for as long as it is one of an expert's last eight."""
        for expert in seated(status).values():
            for receipt in expert["receipts"]:
                self.seen[expert["stage"], receipt["round"]].add(receipt["digest"])

    def check(self) -> None:
        """There were some, and no round has two."""
        assert len(self.seen) > 2
        assert all(len(digests) == 1 for digests in self.seen.values()), dict(self.seen)
