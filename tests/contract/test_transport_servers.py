"""What every transport promises of servers, over gRPC and over the network in memory."""

from __future__ import annotations

import asyncio

import pytest

from distqat.errors import (
    CannotListenError,
    RefusedError,
    UnreachableError,
)
from distqat.ids import Endpoint
from distqat.rpc.transport import Bytes, Deadline, Method
from tests.contract.worlds import (
    ECHO,
    HANG,
    NAME,
    STALL,
    WORLDS,
    Trial,
    World,
    chat,
    soon,
)
from tests.support import until

pytestmark = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)

MIB = 1 << 20


def test_a_server_that_closes_breaks_calls_and_streams_at_once_and_joins_handlers(world: World) -> None:
    async def main() -> None:
        async with world.transports() as (alice, bob):
            trial = Trial()
            async with asyncio.TaskGroup() as group:
                async with bob.serve(world.listen) as server:
                    server.add(trial.service())
                    to, loop = server.endpoint, asyncio.get_running_loop()

                    async def hang() -> float:
                        with pytest.raises(UnreachableError):
                            await alice.call(to, HANG, b"", Deadline.after(60))
                        return loop.time()

                    async def stall() -> float:
                        with pytest.raises(UnreachableError):
                            async with alice.stream(to, STALL) as stream:
                                await stream.receive()
                        return loop.time()

                    waiting = [group.create_task(hang()), group.create_task(stall())]
                    await until(lambda: trial.began == 2)
                    began = loop.time()
                assert trial.joined == 2
            assert all(task.result() - began < 0.5 for task in waiting)
            with pytest.raises(UnreachableError):
                await alice.call(to, ECHO, b"", Deadline.after(5))

    world.run(main())


def test_a_server_that_is_back_is_reached_again(world: World) -> None:
    async def main() -> None:
        async with world.transports() as (alice, bob):
            listen = world.listen
            for _ in range(2):
                async with bob.serve(listen) as server:
                    server.add(Trial().service())
                    listen = server.endpoint
                    async with asyncio.timeout(5):
                        while True:
                            try:
                                assert await alice.call(listen, ECHO, b"hi", Deadline.after(5)) == b"hi"
                                break
                            except UnreachableError:
                                await asyncio.sleep(0.02)

    world.run(main())


def test_services_come_and_go_while_the_server_listens(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            later = Method("distqat.v1.Later", "Echo")
            with pytest.raises(RefusedError):
                await pair.alice.call(pair.to, later, b"", Deadline.after(5))
            pair.server.add(Trial().service("distqat.v1.Later"))
            assert await pair.alice.call(pair.to, later, b"here", Deadline.after(5)) == b"here"
            assert "distqat.v1.Later" in repr(pair.server)
            await pair.server.remove("distqat.v1.Later")
            with pytest.raises(RefusedError, match=r"distqat\.v1\.Later"):
                await pair.alice.call(pair.to, later, b"", Deadline.after(5))
            assert await pair.echo(b"the other stays") == b"the other stays"

    world.run(main())


def test_removing_a_service_cancels_and_joins_its_handlers(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair, chat(pair, STALL) as stream:
            await soon(pair.trial.started)
            await pair.server.remove(NAME)
            assert pair.trial.joined == 1
            with pytest.raises(UnreachableError, match="stopped"):
                await stream.receive()

    world.run(main())


def test_an_error_in_the_body_leaves_a_server_as_it_was_raised(world: World) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with world.pair():
                raise ZeroDivisionError

    world.run(main())


def test_a_port_that_is_taken_cannot_be_listened_at(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            with pytest.raises(CannotListenError, match=str(pair.to)):
                async with pair.bob.serve(pair.to):
                    pass
            assert await pair.echo(b"unharmed") == b"unharmed"

    world.run(main())


def test_an_address_of_another_machine_cannot_be_listened_at(world: World) -> None:
    async def main() -> None:
        async with world.transports() as (alice, _):
            with pytest.raises(CannotListenError, match=r"203\.0\.113\.1:4000"):
                async with alice.serve(Endpoint("203.0.113.1", 4000)):
                    pass

    world.run(main())


def test_message_bytes_are_counted_by_flow_on_both_sides(world: World) -> None:
    async def main() -> None:
        async with world.pair() as pair:
            await pair.echo(bytes(10))
            async with chat(pair) as stream:
                await stream.send(bytes(100))
                await stream.receive()
                await stream.finish()
                await stream.receive()
            for transport in (pair.alice, pair.bob):
                assert transport.traffic() == {"trial": Bytes(110, 110)}

    world.run(main())
