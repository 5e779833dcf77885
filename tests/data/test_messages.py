from __future__ import annotations

import random
from contextlib import suppress

import pytest

from distqat.data import messages
from distqat.data.claims import Claim, ClaimAnswer
from distqat.data.messages import ClaimRequest, ResolveAnswer, ResolveRequest, WhereAnswer, WhereRequest
from distqat.errors import MessageError
from distqat.ids import Endpoint, RunId
from distqat.pb import data_pb2

RUN = RunId("digits", "0123")


def test_requests_round_trip() -> None:
    claim = ClaimRequest(RUN, "p1", 32, 2**40)
    assert ClaimRequest.decode(claim.encode()) == claim
    for is_committed in (True, False):
        resolve = ResolveRequest(RUN, 7, is_committed)
        assert ResolveRequest.decode(resolve.encode()) == resolve
        answer = ResolveAnswer(is_committed, 2**40)
        assert ResolveAnswer.decode(answer.encode()) == answer


@pytest.mark.parametrize(
    "answer",
    [
        ClaimAnswer(Claim(3, "p1", 64, 96), serial=3),
        ClaimAnswer(None, is_finished=True, reason="the run's budget is committed", serial=3),
        ClaimAnswer(None, reason="waiting: the last 8 samples of the run are with pipeline p2"),
    ],
)
def test_answers_round_trip(answer: ClaimAnswer) -> None:
    assert messages.decode_answer(messages.encode_answer(answer), "p1") == answer


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ClaimRequest(RUN, "", 32, 1), "must name its pipeline"),
        (ClaimRequest(RUN, "p 1", 32, 1), "the name of a pipeline"),
        (ClaimRequest(RUN, "p1;p2", 32, 1), "the name of a pipeline"),
        (ClaimRequest(RUN, "p1\n", 32, 1), "the name of a pipeline"),
        (ClaimRequest(RUN, "p" * 65, 32, 1), "the name of a pipeline"),
        (ClaimRequest(RUN, "p1", 0, 1), "number of samples"),
        (ClaimRequest(RUN, "p1", 1 << 21, 1), "number of samples"),
        (ClaimRequest(RUN, "p1", 32, 0), "a serial from 1 on"),
        (ClaimRequest(RunId("", ""), "p1", 32, 1), "for which run"),
    ],
)
def test_claims_that_make_no_sense(request_: ClaimRequest, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        ClaimRequest.decode(request_.encode())


def test_others_that_make_no_sense() -> None:
    with pytest.raises(MessageError, match="which claim"):
        ResolveRequest.decode(ResolveRequest(RUN, 0, True).encode())
    backwards = data_pb2.ClaimReply(claim=1, begin=5, end=5).SerializeToString()
    with pytest.raises(MessageError, match="samples 5 to 5"):
        messages.decode_answer(backwards, "p1")


def test_where_the_data_server_answers_or_why_not() -> None:
    assert WhereRequest.decode(WhereRequest(RUN).encode()) == WhereRequest(RUN)
    for answer in (WhereAnswer(Endpoint("head", 4000)), WhereAnswer(None, "data server starting")):
        assert WhereAnswer.decode(answer.encode()) == answer
    with pytest.raises(MessageError, match="where the data server answers"):
        WhereAnswer.decode(data_pb2.WhereReply(endpoint="nowhere").SerializeToString())


def decode_answer(data: bytes) -> ClaimAnswer:
    return messages.decode_answer(data, "p1")


def test_garbage_is_a_message_error_and_nothing_else() -> None:
    draw = random.Random(5)
    good = ClaimRequest(RUN, "p1", 32, 1).encode()
    for _ in range(2000):
        data = bytearray(good)
        data[draw.randrange(len(data))] = draw.randrange(256)
        for decode in (ClaimRequest.decode, ResolveRequest.decode, ResolveAnswer.decode, decode_answer):
            with suppress(MessageError):
                decode(bytes(data))


def test_methods_are_those_of_the_proto() -> None:
    service = data_pb2.DESCRIPTOR.services_by_name["Data"]
    assert service.full_name == messages.SERVICE
    assert {method.name for method in service.methods} == {
        messages.CLAIM.name,
        messages.RESOLVE.name,
        messages.BOOKS.name,
        messages.WHERE.name,
    }
