"""The same rounds over real sockets, with real devices."""

from __future__ import annotations

from contextlib import AsyncExitStack

import torch

from distqat.averaging.outer import OuterState
from distqat.model.device import Device
from distqat.rpc.grpc import open_transport
from distqat.rpc.local import Network
from tests.averaging.swarm import PLAIN, Swarm, together
from tests.support import run

ELEMENTS = 1_000_000


def test_three_members_and_a_million_elements() -> None:
    async def scenario() -> None:
        swarm = Swarm(Network(), PLAIN, parameters=ELEMENTS - 10, buffers=10)
        async with AsyncExitStack() as stack:
            nodes = []
            for name in ("alice", "bob", "carol"):
                transport = await stack.enter_async_context(open_transport())
                device = await stack.enter_async_context(Device.open("cpu", threads=1))
                nodes.append(await stack.enter_async_context(swarm.node(name, transport, "127.0.0.1", device)))
            for node in nodes:
                await node.averager.found(torch.zeros(ELEMENTS))
            locals_ = [torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
            results = await together(
                *(node.averager.synchronise(local, 2) for node, local in zip(nodes, locals_, strict=True))
            )
            assert torch.allclose(results[0].state.anchor, sum(locals_) / 3, atol=1e-6)  # type: ignore[arg-type]
            assert len({node.digest for node in nodes}) == 1
            # Two thirds of the vector leave and come, once as contributions and once as averages.
            for node in nodes:
                assert 0 <= node.averager.receipts[-1].bytes - 4 * (2 / 3) * 4 * ELEMENTS < 20_000
            transport = await stack.enter_async_context(open_transport())
            device = await stack.enter_async_context(Device.open("cpu", threads=1))
            dave = await stack.enter_async_context(swarm.node("dave", transport, "127.0.0.1", device))
            state = await dave.averager.catch_up(swarm.siblings(dave.peer))
            assert isinstance(state, OuterState)
            assert dave.digest == nodes[0].digest

    run(scenario())
