"""The data service's messages: bytes to dataclasses and back, and its methods."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message

from distqat.data.claims import Claim, ClaimAnswer
from distqat.errors import ConfigError, MessageError
from distqat.ids import Endpoint, RunId, is_name
from distqat.pb import common_pb2, data_pb2
from distqat.rpc.transport import Method

SERVICE = "distqat.v1.Data"
CLAIM = Method(SERVICE, "Claim")
RESOLVE = Method(SERVICE, "Resolve")
BOOKS = Method(SERVICE, "Books")
WHERE = Method(SERVICE, "Where")

MAX_REASON = 500
"""Characters of the reason of a refusal; the rest is cut off."""

MAX_SAMPLES = 1 << 20
"""Samples of one claim; far more than a batch has."""


@dataclass(frozen=True)
class ClaimRequest:
    """A pipeline asks for its next samples."""

    run: RunId
    pipeline: str
    samples: int
    serial: int
    step: int = 0

    def encode(self) -> bytes:
        """As it travels."""
        return data_pb2.ClaimRequest(
            run=_run(self.run), pipeline=self.pipeline, samples=self.samples, serial=self.serial, step=self.step
        ).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> ClaimRequest:
        """Raises MessageError."""
        message = data_pb2.ClaimRequest()
        _parse(message, data)
        if not message.pipeline or not message.serial or not 1 <= message.samples <= MAX_SAMPLES:
            raise MessageError("a claim must name its pipeline, a serial from 1 on and the number of samples")
        if not is_name(message.pipeline):
            raise MessageError("the name of a pipeline is of at most 64 letters, digits, '.', '_' and '-'")
        return cls(_run_id(message.run), message.pipeline, message.samples, message.serial, message.step)


@dataclass(frozen=True)
class ResolveRequest:
    """A claim's samples are in committed parameters, or are given back; or skipped, for the reason in `refused`."""

    run: RunId
    claim: int
    is_committed: bool
    refused: str = ""

    def encode(self) -> bytes:
        """As it travels."""
        return data_pb2.ResolveRequest(
            run=_run(self.run), claim=self.claim, committed=self.is_committed, refused=self.refused[:MAX_REASON]
        ).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> ResolveRequest:
        """Raises MessageError."""
        message = data_pb2.ResolveRequest()
        _parse(message, data)
        if not message.claim:
            raise MessageError("which claim is to be resolved is missing")
        if message.committed and message.refused:
            raise MessageError(f"claim {message.claim} is both committed and refused")
        return cls(_run_id(message.run), message.claim, message.committed, message.refused[:MAX_REASON])


@dataclass(frozen=True)
class ResolveAnswer:
    """Whether it was accepted, and the samples of the budget that are committed."""

    is_accepted: bool
    committed: int

    def encode(self) -> bytes:
        """As it travels."""
        return data_pb2.ResolveReply(accepted=self.is_accepted, committed=self.committed).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> ResolveAnswer:
        """Raises MessageError."""
        message = data_pb2.ResolveReply()
        _parse(message, data)
        return cls(message.accepted, message.committed)


@dataclass(frozen=True)
class BooksRequest:
    """A standby client wants to know what stands in the books."""

    run: RunId

    def encode(self) -> bytes:
        """As it travels."""
        return data_pb2.BooksRequest(run=_run(self.run)).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> BooksRequest:
        """Raises MessageError."""
        message = data_pb2.BooksRequest()
        _parse(message, data)
        return cls(_run_id(message.run))


@dataclass(frozen=True)
class BooksAnswer:
    """The books as JSON."""

    json: str

    def encode(self) -> bytes:
        """As it travels."""
        return data_pb2.BooksReply(json=self.json).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> BooksAnswer:
        """Raises MessageError."""
        message = data_pb2.BooksReply()
        _parse(message, data)
        return cls(message.json)


@dataclass(frozen=True)
class WhereRequest:
    """A trainer wants to know where the data server answers."""

    run: RunId

    def encode(self) -> bytes:
        """As it travels."""
        return data_pb2.WhereRequest(run=_run(self.run)).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> WhereRequest:
        """Raises MessageError."""
        message = data_pb2.WhereRequest()
        _parse(message, data)
        return cls(_run_id(message.run))


@dataclass(frozen=True)
class WhereAnswer:
    """Where it answers, or why it does not."""

    endpoint: Endpoint | None
    reason: str = ""

    def encode(self) -> bytes:
        """As it travels."""
        where = str(self.endpoint) if self.endpoint is not None else ""
        return data_pb2.WhereReply(endpoint=where, reason=self.reason[:MAX_REASON]).SerializeToString()

    @classmethod
    def decode(cls, data: bytes) -> WhereAnswer:
        """Raises MessageError."""
        message = data_pb2.WhereReply()
        _parse(message, data)
        if not message.endpoint:
            return cls(None, message.reason[:MAX_REASON])
        try:
            return cls(Endpoint.parse(message.endpoint))
        except ConfigError as error:
            raise MessageError(f"where the data server answers: {error.reason}") from None


def encode_answer(answer: ClaimAnswer) -> bytes:
    """The reply to a claim."""
    message = data_pb2.ClaimReply(finished=answer.is_finished, reason=answer.reason, serial=answer.serial)
    if answer.claim is not None:
        message.claim, message.begin, message.end = answer.claim.id, answer.claim.begin, answer.claim.end
    return message.SerializeToString()


def decode_answer(data: bytes, pipeline: str) -> ClaimAnswer:
    """The reply to a claim of that pipeline. Raises MessageError."""
    message = data_pb2.ClaimReply()
    _parse(message, data)
    if not message.claim:
        return ClaimAnswer(None, message.finished, message.reason, message.serial)
    if not 0 < message.end - message.begin <= MAX_SAMPLES:
        raise MessageError(f"claim {message.claim} is of samples {message.begin} to {message.end}")
    claim = Claim(message.claim, pipeline, message.begin, message.end)
    return ClaimAnswer(claim, message.finished, message.reason, message.serial)


def _parse(message: Message, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise MessageError(f"{len(data)} bytes that are no {type(message).__name__}") from None


def _run(run: RunId) -> common_pb2.RunRef:
    return common_pb2.RunRef(name=run.name, digest=run.digest)


def _run_id(run: common_pb2.RunRef) -> RunId:
    if not run.name or not run.digest:
        raise MessageError("the message does not say for which run it is")
    return RunId(run.name, run.digest)
