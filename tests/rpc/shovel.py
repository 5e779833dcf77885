"""Run as a process on a machine: takes bulk, or sends it to others and says how that went."""

from __future__ import annotations

import asyncio
import json
import sys

from distqat.ids import Endpoint
from distqat.rpc.grpc import GrpcTransport, open_transport
from distqat.rpc.transport import Caller, Deadline, Lane, Method, Service, Stream

NAME = "distqat.v1.Shovel"
ECHO = Method(NAME, "Echo")
TAKE = Method(NAME, "Take", Lane.BULK)
PORT = 7000
MESSAGE = 1 << 18


async def serve(host: str) -> None:
    async def take(stream: Stream, caller: Caller) -> None:
        while await stream.receive() is not None:
            pass

    async def echo(request: bytes, caller: Caller) -> bytes:
        say({"downlink": transport.downlink()})
        return request

    async with open_transport() as transport, transport.serve(Endpoint(host, PORT)) as server:
        server.add(Service(NAME, {"Echo": echo}, {"Take": take}))
        say({"listens": True})
        await asyncio.Event().wait()


async def send(hosts: list[str], num_bytes: int) -> None:
    """Twice so many bytes to each: the first time nothing is known of the link."""
    loop = asyncio.get_running_loop()
    async with open_transport() as transport:
        for _ in range(2):
            async with asyncio.TaskGroup() as group:
                began = loop.time()
                beats = group.create_task(beat(transport, hosts[0]))
                async with asyncio.TaskGroup() as sending:
                    for host in hosts:
                        sending.create_task(shovel(transport, host, num_bytes))
                seconds = loop.time() - began
                beats.cancel()
            slowest = max(delays)
            delays.clear()
            say({"uplink": transport.uplink(), "rate": len(hosts) * num_bytes / seconds, "slowest": slowest})
            await asyncio.sleep(1.0)


async def shovel(transport: GrpcTransport, host: str, num_bytes: int) -> None:
    async with transport.stream(Endpoint(host, PORT), TAKE) as stream:
        for _ in range(num_bytes // MESSAGE):
            await stream.send(bytes([1]) * MESSAGE, more=True)
        await stream.finish()
        await stream.receive()


delays: list[float] = []  # Of echoes, while bulk was sent.


async def beat(transport: GrpcTransport, host: str) -> None:
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        await transport.call(Endpoint(host, PORT), ECHO, b"", Deadline.after(30))
        delays.append(loop.time() - began)
        await asyncio.sleep(0.1)


def say(facts: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2]))
    else:
        asyncio.run(send(sys.argv[3:], int(sys.argv[2])))
