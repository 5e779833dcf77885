"""Every error distqat raises, in one tree.

A message says what happened, to which peer or field, and what to do. Whether the same call may succeed when it is
tried again is a property of the class, so that no caller has to guess.
"""

from __future__ import annotations


class DistqatError(Exception):
    """Root of the tree."""

    retriable = False

    @property
    def reason(self) -> str:
        """The message: one sentence for people."""
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigError(DistqatError):
    """A setting is unknown, of the wrong type or out of range; the message names it."""


class IdentityError(DistqatError):
    """The peer's key cannot be read, or is used by another daemon at the same time."""


class CannotListenError(DistqatError):
    """The listen address cannot be bound."""


class GivenUpError(DistqatError):
    """Something failed so often in a row that it is not tried again."""


class NothingToResumeError(DistqatError):
    """This daemon was told to go on with a run, and nobody knows of anything that could be gone on with."""


class RpcError(DistqatError):
    """A call to another peer failed."""


class UnreachableError(RpcError):
    """Nobody answers at the address, or the connection broke."""

    retriable = True


class GoneError(UnreachableError):
    """Nobody listens at the address any more: the process that did is gone for sure, not only out of reach."""


class DeadlineError(RpcError):
    """The answer did not come in time."""

    retriable = True


class OverloadedError(RpcError):
    """The peer has no room for the request now."""

    retriable = True


class NotDistqatError(RpcError):
    """Something answers at the address, but it is not distqat."""


class ProtocolError(RpcError):
    """The peer speaks another version of the protocol."""


class WrongRunError(RpcError):
    """The peer works for another run, or for another config of it."""


class RefusedError(RpcError):
    """The peer understood the request and declines it; the message says why."""


class MessageError(RpcError):
    """A message is garbage, oversized, or not what its header says."""


class RemoteError(RpcError):
    """The peer failed while it worked on the request."""


class RecordError(DistqatError):
    """A DHT record is forged, replayed, expired or too large."""


class TensorError(DistqatError):
    """A tensor has another shape or element type than the stage takes, or holds NaN or infinity."""


class ComputeError(DistqatError):
    """A stage's own code failed on its device; what it was at is dropped, and the expert goes on."""


class MemoryShortError(ComputeError):
    """The device, or the machine, has not enough memory for a piece of work; a smaller microbatch needs less."""


class TornError(ComputeError):
    """A step may be applied in part: the stage's numbers are of no use any more, and have to come from elsewhere."""


class ModelError(DistqatError):
    """The model cannot be built or cut as asked."""


class DataError(DistqatError):
    """The data set cannot be found or read."""


class RouteError(DistqatError):
    """A route broke; the message names the hop."""

    retriable = True


class StaleError(DistqatError):
    """A route epoch, step or round is older than what the peer already has."""


class FencedError(StaleError):
    """The pipeline was ended while its trainer was away; its samples are with others, and none of its routes opens."""


class RoundError(DistqatError):
    """An outer round could not be completed; the local progress is kept."""

    retriable = True


class StateError(DistqatError):
    """A snapshot is incomplete or does not match its digest."""

    retriable = True


def find(kind: str) -> type[DistqatError] | None:
    """The class of that name, or None; used to raise a peer's error as what it was there."""
    todo: list[type[DistqatError]] = [DistqatError]
    while todo:
        known = todo.pop()
        if known.__name__ == kind:
            return known
        todo.extend(known.__subclasses__())
    return None
