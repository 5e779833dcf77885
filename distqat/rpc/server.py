"""The listening side over gRPC: one port for all services, health and reflection among them.

Calls are dispatched by their path to whatever is served at that moment, as bytes; gRPC knows no message of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distqat.errors import CannotListenError, DistqatError
from distqat.ids import Endpoint
from distqat.pb import averaging_pb2, control_pb2, data_pb2, discovery_pb2, feed_pb2, pipeline_pb2, state_pb2
from distqat.rpc import headers
from distqat.rpc.channels import KEEPALIVE
from distqat.rpc.handlers import Handlers
from distqat.rpc.headers import Headers
from distqat.rpc.links import Links
from distqat.rpc.pipes import checked
from distqat.rpc.status import ERROR_KEY, code_of, details_of
from distqat.rpc.streams import HandlerStream, ServerContext, address_of
from distqat.rpc.transport import Caller, Deadline, Method, Service

STOP_GRACE = 1.0
"""Seconds that calls which are not ours (a health watch) may go on after the server has begun to close."""

_PB_MODULES: tuple[ModuleType, ...] = (
    averaging_pb2,
    control_pb2,
    data_pb2,
    discovery_pb2,
    feed_pb2,
    pipeline_pb2,
    state_pb2,
)

_SERVER_OPTIONS = [
    *KEEPALIVE,
    # A port that is taken is an error, not a share.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_send_message_length", -1),
]


@dataclass(frozen=True)
class ServerStatistics:
    """How things stand at one moment."""

    endpoint: Endpoint
    services: tuple[str, ...]
    num_running: int


class GrpcServer:
    """A listening port; made by `GrpcTransport.serve`."""

    def __init__(self, endpoint: Endpoint, handlers: Handlers, health: health.aio.HealthServicer) -> None:
        self._endpoint = endpoint
        self._handlers = handlers
        self._health = health

    def __repr__(self) -> str:
        return f"<GrpcServer {self._endpoint}: {', '.join(self._handlers.services) or 'no service'}>"

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens; the port is the real one even if 0 was asked for."""
        return self._endpoint

    def statistics(self) -> ServerStatistics:
        """A snapshot."""
        return ServerStatistics(self._endpoint, tuple(self._handlers.services), self._handlers.num_running)

    def add(self, service: Service) -> None:
        """Answer for this service; replaces one of the same name."""
        self._handlers.add(service)
        serving = self._health.set(service.name, health_pb2.HealthCheckResponse.SERVING)
        self._handlers.group.create_task(serving, name=f"health of {service.name}")

    async def remove(self, name: str) -> None:
        """Stop answering for it; its running handlers are cancelled and joined."""
        await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._handlers.remove(name)


@asynccontextmanager
async def open_server(listen: Endpoint, links: Links, max_message: int) -> AsyncIterator[GrpcServer]:
    """Listen; at the end handlers are cancelled and joined. Raises CannotListenError."""
    async with Handlers.open(str(listen)) as handlers:
        server = grpc.aio.server(options=[*_SERVER_OPTIONS, ("grpc.max_receive_message_length", max_message)])
        checking = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checking, server)
        reflection.enable_server_reflection(tuple(_service_names()), server)
        server.add_generic_rpc_handlers((_Dispatch(handlers, links, max_message),))
        try:
            port = server.add_insecure_port(str(listen))
        except RuntimeError:
            raise CannotListenError(f"cannot listen at {listen}: the port is in use, or the address not ours") from None
        endpoint = Endpoint(listen.host, port)
        handlers.name = str(endpoint)
        await server.start()
        try:
            yield GrpcServer(endpoint, handlers, checking)
        finally:
            async with asyncio.TaskGroup() as closing:
                closing.create_task(server.stop(STOP_GRACE))
                closing.create_task(handlers.close())


class _Dispatch(grpc.GenericRpcHandler):
    """Finds who answers a call, by its path."""

    def __init__(self, handlers: Handlers, links: Links, max_message: int) -> None:
        self._handlers = handlers
        self._links = links
        self._meter = links.meter
        self._max_message = max_message

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Called by gRPC for each call that is not health or reflection."""
        service, _, name = details.method.removeprefix("/").rpartition("/")
        sent = headers.read(details.invocation_metadata or ())
        served = self._handlers.services.get(service)
        if served is None and not sent.version:
            return None  # Not meant for distqat at all.
        method = Method(service, name, sent.lane)
        if served is not None and name in served.calls:
            return grpc.unary_unary_rpc_method_handler(self._answer_call(method, sent))
        # A stream handler can refuse both kinds, since it need not wait for a message first.
        return grpc.stream_stream_rpc_method_handler(self._answer_stream(method, sent))

    def _answer_call(self, method: Method, sent: Headers) -> Callable[[bytes, ServerContext], Awaitable[bytes]]:
        async def answer(request: bytes, context: ServerContext) -> bytes:
            self._meter.received(method.flow, request)
            try:
                handler = self._handlers.call(method.service, method.name)
                caller = self._caller(context, sent)

                async def work() -> bytes:
                    return checked(await handler(request, caller), self._max_message)

                reply = await self._handlers.run(method.service, work)
            except DistqatError as error:
                await _abort(context, error)
            self._meter.sent(method.flow, reply)
            return reply

        return answer

    def _answer_stream(self, method: Method, sent: Headers) -> Callable[[object, ServerContext], Awaitable[None]]:
        async def answer(_: object, context: ServerContext) -> None:
            stream = HandlerStream(context, method, self._links, self._max_message, self._handlers.group)
            try:
                handler = self._handlers.stream(method.service, method.name)
                caller = self._caller(context, sent)
                await context.send_initial_metadata(headers.ACCEPTED)

                async def work() -> None:
                    await handler(stream, caller)
                    await stream.flush()

                await self._work(method, stream, work)
            except DistqatError as error:
                await _abort(context, error)
            finally:
                stream.close()

        return answer

    async def _work(self, method: Method, stream: HandlerStream, work: Callable[[], Awaitable[None]]) -> None:
        """Let a stream's handler work, and tell the caller how it has ended."""
        failure: DistqatError | None = None
        try:
            await self._handlers.run(method.service, work)
        except DistqatError as error:
            failure = error
        await self._handlers.linger(lambda: stream.say_end(failure))
        if failure is not None:
            raise failure

    def _caller(self, context: ServerContext, sent: Headers) -> Caller:
        """Who asks; raises ProtocolError, MessageError."""
        sent.check_version(self._handlers.name)
        left = sent.seconds_left(context.time_remaining())
        return Caller(address_of(context), Deadline.after(left) if left is not None else None)


async def _abort(context: ServerContext, error: DistqatError) -> NoReturn:
    await context.abort(code_of(error), details_of(error), ((ERROR_KEY, type(error).__name__),))
    raise AssertionError("abort returned")


def _service_names() -> Iterator[str]:
    """All services of ours, and those that answer about them; reflection tells of all, whatever is served now."""
    for module in _PB_MODULES:
        yield from (service.full_name for service in module.DESCRIPTOR.services_by_name.values())
    yield health.SERVICE_NAME
    yield reflection.SERVICE_NAME
