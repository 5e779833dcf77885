"""The standard services of any gRPC server: health and reflection."""

from __future__ import annotations

import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from distqat.rpc.grpc import open_transport
from tests.contract.worlds import NAME, Trial
from tests.rpc.test_grpc import LOOPBACK
from tests.support import run

OURS = {f"distqat.v1.{name}" for name in ("Averaging", "Control", "Data", "Discovery", "Pipeline", "State")}


def test_health_answers_for_the_server_and_for_each_service() -> None:
    async def main() -> None:
        async with (
            open_transport() as bob,
            bob.serve(LOOPBACK) as server,
            grpc.aio.insecure_channel(str(server.endpoint)) as channel,
        ):
            stub = health_pb2_grpc.HealthStub(channel)

            async def status(service: str) -> int:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
                return int(answer.status)

            assert await status("") == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
                await status(NAME)
            server.add(Trial().service())
            assert await status(NAME) == health_pb2.HealthCheckResponse.SERVING
            await server.remove(NAME)
            assert await status(NAME) == health_pb2.HealthCheckResponse.NOT_SERVING

    run(main())


def test_reflection_lists_our_services_and_hands_out_their_descriptors() -> None:
    async def main() -> None:
        async with (
            open_transport() as bob,
            bob.serve(LOOPBACK) as server,
            grpc.aio.insecure_channel(str(server.endpoint)) as channel,
        ):
            ask = reflection_pb2.ServerReflectionRequest
            questions = [ask(list_services=""), ask(file_containing_symbol="distqat.v1.Pipeline")]
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            answers = [answer async for answer in stub.ServerReflectionInfo(iter(questions), timeout=5)]
        listed = {service.name for service in answers[0].list_services_response.service}
        assert listed >= OURS | {"grpc.health.v1.Health"}
        file = FileDescriptorProto.FromString(answers[1].file_descriptor_response.file_descriptor_proto[0])
        assert [service.name for service in file.service] == ["Pipeline"]

    run(main())
