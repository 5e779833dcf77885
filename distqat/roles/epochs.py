"""Route epochs: a client counts its orders, and a trainer how often it has opened the route of one. Pure."""

from __future__ import annotations

ATTEMPTS_OF_AN_EPOCH = 1 << 16
"""A trainer that opens its route again makes a new epoch of the hops, without one of the client's."""


def epoch_of_hops(order: int, attempt: int) -> int:
    """The epoch that the hops of that attempt have; a newer order always has a greater one."""
    return order * ATTEMPTS_OF_AN_EPOCH + attempt


def order_and_attempt(epoch: int) -> tuple[int, int]:
    """The epoch of the client's order, and the trainer's attempt at it, of an epoch of hops."""
    return divmod(epoch, ATTEMPTS_OF_AN_EPOCH)
