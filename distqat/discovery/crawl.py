"""Who is near a key, and what they hold under it: the package's crawler, with our answers.

A value crawl does not stop at the first hit: it merges what all the nearest nodes hold, and finds out who lacks what.
"""

from __future__ import annotations

from collections.abc import Mapping

from kademlia.crawling import SpiderCrawl
from kademlia.node import Node

from distqat.discovery.calls import FindValueReply
from distqat.discovery.protocol import DhtProtocol
from distqat.discovery.records import SignedRecord

MAX_CONTACTS = 64
"""Nodes that one crawl asks: a liar that invents ever nearer nodes is left alone after that."""

MAX_REPAIRED = 32
"""Records that are given to one node after one crawl."""


class NodeCrawl(SpiderCrawl):  # type: ignore[misc]  # The package has no types.
    """Finds the nodes nearest to a place that answer: `await NodeCrawl(...).find()`."""

    def __init__(self, protocol: DhtProtocol, target: bytes, width: int) -> None:
        """Look for the `width` nodes nearest to `target`, beginning with those in the routing table."""
        settings = protocol.settings
        start = protocol.nearest(target, max(width, settings.bucket))
        super().__init__(protocol, Node(target), start, width, settings.alpha)
        self._failed: set[bytes] = set()  # Nodes that did not answer.
        self._named = {node.id for node in start}  # Nodes heard of; failed ones are named again and again.

    async def find(self) -> list[Node]:
        """The nearest nodes that answered, nearest first."""
        found: list[Node] = await self._find(self.protocol.call_find_node)
        return found

    async def _nodes_found(self, responses: Mapping[bytes, tuple[bool, object]]) -> list[Node]:
        """After each wave: learn from the answers, then go on or be done."""
        for node_id, (has_answered, answer) in responses.items():
            if not has_answered:
                self._failed.add(node_id)
                continue
            new = [Node(*one) for one in self._learn(node_id, answer) if one[0] not in self._named]
            self._named.update(node.id for node in new)
            self.nearest.push(new)
        self.nearest.remove(self._failed)
        asked = self.nearest.contacted
        if self.nearest.have_contacted_all() or len(asked) >= MAX_CONTACTS:
            return [node for node in self.nearest if node.id in asked]
        return await self.find()

    def _learn(self, node_id: bytes, answer: object) -> list[tuple[bytes, str, int]]:
        """The nodes that the answer names."""
        assert isinstance(answer, list)
        return answer


class ValueCrawl(NodeCrawl):
    """Finds what the nearest nodes hold; `answers` is by node id."""

    def __init__(self, protocol: DhtProtocol, target: bytes, width: int) -> None:
        super().__init__(protocol, target, width)
        self.answers: dict[bytes, tuple[SignedRecord, ...]] = {}

    async def find(self) -> list[Node]:
        """The nearest nodes that answered, nearest first."""
        found: list[Node] = await self._find(self.protocol.call_find_value)
        return found

    def _learn(self, node_id: bytes, answer: object) -> list[tuple[bytes, str, int]]:
        assert isinstance(answer, FindValueReply)
        self.answers[node_id] = answer.records
        named: list[tuple[bytes, str, int]] = self.protocol.others(answer.nodes)
        return named


def lacking(answer: tuple[SignedRecord, ...], merged: list[SignedRecord], least: float) -> list[SignedRecord]:
    """What a node that gave this answer lacks of what all together hold and is to live for `least` seconds more."""
    held = {record.body for record in answer}
    return [record for record in merged if record.body not in held and record.remaining > least][:MAX_REPAIRED]
