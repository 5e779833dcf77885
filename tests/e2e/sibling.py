"""Run as a process: makes siblings, each a process of its own with a real averager over gRPC, ordered about by a test.

The first process imports everything once and forks. A sibling connects to the test's socket, says where it listens and,
a few times a second, what it has committed; it does what it is told, and kills or stops itself at an exact message.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from bench.machines import enter
from distqat.averaging.averager import Averager, Outcome
from distqat.averaging.context import Context, Sibling
from distqat.averaging.service import services
from distqat.averaging.spans import Shape
from distqat.errors import DistqatError
from distqat.ids import Endpoint, PeerId
from distqat.model.device import Device
from distqat.rpc.grpc import open_transport
from distqat.rpc.transport import Caller, Deadline, Method, Service, Transport
from distqat.sections import SyncSection
from tests.averaging.swarm import RUN, STAGE
from tests.averaging.trap import Trap
from tests.e2e.family import READY

BEAT = 0.2


class Snare(Trap):
    """A trap that also lets a test step in after the answer to a call, and before and after a call is answered here."""

    async def call(self, to: Endpoint, method: Method, request: bytes, deadline: Deadline) -> bytes:
        answer = await super().call(to, method, request, deadline)
        await self.hook(f"{method.name} answered")
        return answer

    def wrap_service(self, service: Service) -> Service:
        def wrap(name: str, handler: Callable[[bytes, Caller], Awaitable[bytes]]) -> Any:
            async def answer(request: bytes, caller: Caller) -> bytes:
                await self.hook(f"{name} came")
                reply = await handler(request, caller)
                await self.hook(f"{name} told")
                return reply

            return answer

        calls = {name: wrap(name, handler) for name, handler in service.calls.items()}
        return Service(service.name, calls, service.streams)


class Child:
    """One sibling."""

    def __init__(self, writer: asyncio.StreamWriter, shape: Shape) -> None:
        self.siblings: list[Sibling] = []
        self.shape = shape
        self._writer = writer
        self._at = ""  # The message at which it strikes itself; empty: none.
        self._times = 0  # How often that message comes before.
        self._signal = 0

    def say(self, **facts: Any) -> None:
        self._writer.write((json.dumps(facts) + "\n").encode())

    async def strike(self, what: str) -> None:
        if what != self._at:
            return
        self._times -= 1
        if self._times < 0:
            self._at = ""
            self.say(struck=what)
            os.kill(os.getpid(), self._signal)

    def see(self, siblings: list[list[Any]]) -> None:
        self.siblings = [
            Sibling(PeerId(peer), Endpoint(host, port), number, digest, ready)
            for peer, host, port, number, digest, ready in siblings
        ]

    def set_trap(self, at: str, times: int, how: str) -> None:
        self._at, self._times, self._signal = at, times, getattr(signal, how)

    async def obey(self, averager: Averager, order: Mapping[str, Any]) -> None:
        """Do what takes a while, and say what came of it."""
        loop = asyncio.get_running_loop()
        began, outcome, failure = loop.time(), None, ""
        try:
            outcome = await self._do(averager, order)
        except DistqatError as error:
            failure = error.reason
        receipt = asdict(outcome.receipt) if outcome is not None and outcome.receipt is not None else None
        self.say(done=order["do"], seconds=loop.time() - began, failure=failure, receipt=receipt, **facts_of(averager))

    async def _do(self, averager: Averager, order: Mapping[str, Any]) -> Outcome | None:
        import torch

        if order["do"] == "found":
            await averager.found(torch.zeros(self.shape.num_elements))
        elif order["do"] == "catch up":
            await averager.catch_up(self.siblings)
        else:
            assert averager.outer is not None
            return await averager.synchronise(averager.outer.anchor + order["value"], order["samples"])
        return None


def facts_of(averager: Averager) -> dict[str, Any]:
    state = averager.outer
    return {"round": state.round, "digest": state.digest} if state is not None else {"round": 0, "digest": ""}


async def live(name: str, host: str, path: str, sync: SyncSection, shape: Shape) -> None:
    """Until the test hangs up."""
    reader, writer = await asyncio.open_unix_connection(path)
    child = Child(writer, shape)
    async with (
        open_transport() as transport,
        Device.open("cpu", threads=1) as device,
        (snare := Snare(transport)).serve(Endpoint(host, 0)) as server,
    ):
        snare.hook = child.strike
        context = context_of(name, server.endpoint, snare, device, sync, child)
        async with Averager.open(context) as averager, asyncio.TaskGroup() as group:
            for service in services(averager):
                server.add(service)
            child.say(hello=name, pid=os.getpid(), host=host, port=server.endpoint.port)
            beats = group.create_task(beat(child, averager))
            while line := await reader.readline():
                match json.loads(line):
                    case {"siblings": siblings}:
                        child.see(siblings)
                    case {"trap": at, "times": times, "how": how}:
                        child.set_trap(at, times, how)
                    case order:
                        group.create_task(child.obey(averager, order))
            beats.cancel()
            os.kill(os.getpid(), signal.SIGKILL)  # Nobody is there to say farewell to.


def context_of(
    name: str, endpoint: Endpoint, transport: Transport, device: Device, sync: SyncSection, child: Child
) -> Context:
    return Context(
        me=PeerId(name),
        endpoint=endpoint,
        run=RUN,
        stage=STAGE,
        shapes=(child.shape,),
        transport=transport,
        device=device,
        sync=sync,
        siblings=lambda: child.siblings,
        on_lost=lambda peer, reason: child.say(lost=peer, reason=reason),
    )


async def beat(child: Child, averager: Averager) -> None:
    while True:
        child.say(**facts_of(averager), ready=averager.outer is not None, doing=str(averager.reason))
        await asyncio.sleep(BEAT)


def main() -> None:
    """Fork a sibling for each line: its name, where it listens, the test's socket, its namespace, sync and shape."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(json.dumps(READY), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if os.fork() == 0:
            sys.stdin.close()
            if order["namespace"]:
                enter(order["namespace"])
            with contextlib.suppress(OSError):
                sync, shape = SyncSection(**order["sync"]), Shape(*order["shape"])
                asyncio.run(live(order["name"], order["host"], order["path"], sync, shape))
            os._exit(0)


if __name__ == "__main__":
    main()
