"""A pipeline over real connections, with a link that can be slow and can be cut in front of every expert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from distqat.ids import Endpoint
from distqat.model.device import Device
from distqat.pipeline.route import Limits
from distqat.rpc.grpc import open_transport
from tests.pipeline.courses import Course
from tests.pipeline.swarm import Expert, Swarm, add_expert
from tests.proxy import Proxy, Shape, open_proxy

FAST = Shape()


@dataclass
class Linked:
    """A swarm, and the link to each of its experts: the one to stage i carries the hop that ends there."""

    swarm: Swarm
    links: list[Proxy]
    """None where the experts are announced as they are."""


@asynccontextmanager
async def open_linked(course: Course, limits: Limits, shape: Shape | None = FAST) -> AsyncIterator[Linked]:
    """Experts over gRPC, each announced at its link; without a shape there is nothing between them."""
    async with AsyncExitStack() as stack:
        device = await stack.enter_async_context(Device.open("cpu", threads=1))
        trainer = await stack.enter_async_context(open_transport())
        linked = Linked(Swarm(course.config().id, trainer, [], [], [], course.limits(limits)), [])
        for index in range(course.stages):
            transport = await stack.enter_async_context(open_transport())
            server = await stack.enter_async_context(transport.serve(Endpoint("127.0.0.1", 0)))
            endpoint = server.endpoint
            if shape is not None:
                linked.links.append(await stack.enter_async_context(open_proxy(endpoint, shape)))
                endpoint = linked.links[-1].endpoint
            add_expert(linked.swarm, Expert(course.stage(index), device), transport, endpoint)
            server.add(linked.swarm.services[-1].service())
        yield linked
