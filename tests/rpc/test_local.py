"""What befalls packets in the network in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from distqat.errors import DeadlineError, DistqatError, UnreachableError
from distqat.ids import Endpoint
from distqat.rpc.local import LocalTransport, Network
from distqat.rpc.transport import Bytes, Deadline, Server
from tests.contract.worlds import CHAT, ECHO, HANG, SINK, STALL, Trial
from tests.support import run_virtual


@dataclass(frozen=True)
class Town:
    """A network with two hosts that both answer."""

    network: Network
    alice: LocalTransport
    bob: LocalTransport
    at_alice: Server
    at_bob: Server
    trial: Trial

    async def ask(self, seconds: float = 10.0) -> float:
        """Alice asks Bob; how long that took, in seconds."""
        return await timed(self.alice, self.at_bob.endpoint, seconds)

    async def ask_back(self, seconds: float = 10.0) -> float:
        """Bob asks Alice."""
        return await timed(self.bob, self.at_alice.endpoint, seconds)


async def timed(transport: LocalTransport, to: Endpoint, seconds: float) -> float:
    began = now()
    assert await transport.call(to, ECHO, b"hi", Deadline.after(seconds)) == b"hi"
    return now() - began


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def open_town(network: Network) -> AsyncIterator[Town]:
    alice, bob = network.transport("alice"), network.transport("bob")
    async with alice.serve(Endpoint("alice", 0)) as at_alice, bob.serve(Endpoint("0.0.0.0", 0)) as at_bob:
        trial = Trial()
        at_alice.add(trial.service())
        at_bob.add(trial.service())
        yield Town(network, alice, bob, at_alice, at_bob, trial)


def test_a_call_takes_the_delay_twice() -> None:
    async def main() -> None:
        async with open_town(Network(delay=0.25)) as town:
            assert await town.ask() == pytest.approx(0.5)
            town.network.delay = 2.0
            assert await town.ask() == pytest.approx(4.0)
            assert await timed(town.bob, town.at_bob.endpoint, 1) == 0.0

    run_virtual(main())


def test_messages_of_a_stream_are_under_way_together_and_stay_in_order() -> None:
    async def main() -> None:
        async with (
            open_town(Network(delay=0.1, jitter=0.5)) as town,
            town.alice.stream(town.at_bob.endpoint, CHAT) as chat,
        ):
            began = now()
            for index in range(30):
                await chat.send(str(index).encode())
            assert now() == began
            assert [await chat.receive() for _ in range(30)] == [str(index).encode() for index in range(30)]
            assert 0.2 <= now() - began <= 1.2

    run_virtual(main())


def test_a_sender_waits_when_too_much_is_under_way() -> None:
    async def main() -> None:
        async with open_town(Network(delay=2.0)) as town, town.alice.stream(town.at_bob.endpoint, SINK) as sink:
            town.trial.release.set()
            began = now()
            for _ in range(64):
                await sink.send(b"small")
            assert now() == began
            await sink.send(bytes(4 << 20))
            assert now() - began == pytest.approx(2.0)
            await sink.send(b"behind a large one")
            assert now() - began == pytest.approx(4.0)

    run_virtual(main(), timeout=60)


def test_a_lost_request_or_answer_ends_at_the_deadline() -> None:
    async def main() -> None:
        async with open_town(Network(seed=1, loss=0.3)) as town:
            answered = 0
            for _ in range(200):
                began = now()
                try:
                    await town.ask(seconds=2.0)
                    answered += 1
                except DeadlineError:
                    assert now() - began == pytest.approx(2.0)
            # Both ways must succeed: 0.7 * 0.7; and a request arrives with 0.7.
            assert answered == pytest.approx(98, abs=20)
            assert len(town.trial.callers) == pytest.approx(140, abs=20)

    run_virtual(main())


def test_streams_lose_nothing() -> None:
    async def main() -> None:
        async with open_town(Network(loss=0.5)) as town, town.alice.stream(town.at_bob.endpoint, CHAT) as chat:
            for index in range(50):
                await chat.send(str(index).encode())
                assert await chat.receive() == str(index).encode()

    run_virtual(main())


def test_a_doubled_request_is_handled_twice_and_answered_once() -> None:
    async def main() -> None:
        async with open_town(Network(duplicate=1.0)) as town:
            await town.ask()
            await asyncio.sleep(0)
            assert len(town.trial.callers) == 2
            assert town.alice.traffic() == {"trial": Bytes(2, 2)}

    run_virtual(main())


def test_a_partition_cuts_both_ways_until_it_heals() -> None:
    async def main() -> None:
        async with open_town(Network(delay=0.01)) as town:
            town.network.partition({"alice"}, {"bob", "carol"})
            for ask in (town.ask, town.ask_back):
                began = now()
                with pytest.raises(UnreachableError):
                    await ask()
                assert now() - began == pytest.approx(town.network.connect_timeout)
            with pytest.raises(DeadlineError):
                await town.ask(seconds=0.5)
            town.network.heal()
            await town.ask()
            await town.ask_back()

    run_virtual(main())


def test_a_one_way_partition_loses_requests_one_way_and_answers_the_other() -> None:
    async def main() -> None:
        async with open_town(Network()) as town:
            town.network.partition({"alice"}, {"bob"}, one_way=True)
            with pytest.raises(UnreachableError):
                await town.ask()
            assert town.trial.callers == []
            with pytest.raises(DeadlineError):
                await town.ask_back(seconds=3.0)
            assert len(town.trial.callers) == 1
            for transport, to in ((town.alice, town.at_bob), (town.bob, town.at_alice)):
                with pytest.raises(UnreachableError):
                    async with transport.stream(to.endpoint, CHAT):
                        pass

    run_virtual(main())


@pytest.mark.parametrize("one_way", [False, True])
def test_a_partition_breaks_streams_at_both_ends_and_leaves_others_alone(one_way: bool) -> None:
    async def main() -> None:
        async with open_town(Network()) as town:
            carol = town.network.transport("carol")
            to = town.at_bob.endpoint
            async with town.alice.stream(to, STALL) as broken, carol.stream(to, CHAT) as whole:
                await town.trial.started.wait()
                town.network.partition({"bob"}, {"alice"}, one_way)
                with pytest.raises(UnreachableError, match="alice and bob was cut"):
                    await broken.receive()
                with pytest.raises(UnreachableError, match="alice and bob was cut"):
                    await broken.send(b"")
                await town.trial.ended.wait()
                await whole.send(b"one")
                assert await whole.receive() == b"one"

    run_virtual(main())


def test_a_crash_of_the_callee_breaks_what_is_under_way_and_nobody_listens() -> None:
    async def main() -> None:
        async with open_town(Network()) as town, asyncio.TaskGroup() as group:
            to = town.at_bob.endpoint

            async def hang() -> None:
                with pytest.raises(UnreachableError):
                    await town.alice.call(to, HANG, b"", Deadline.after(60))

            group.create_task(hang())
            async with town.alice.stream(to, CHAT) as chat:
                await asyncio.sleep(1)
                town.network.crash("bob")
                with pytest.raises(UnreachableError, match="bob has crashed"):
                    await chat.receive()
            await town.trial.ended.wait()
            assert now() == pytest.approx(1.01)
            with pytest.raises(UnreachableError, match=f"nobody listens at {to}"):
                await town.ask()
            with pytest.raises(UnreachableError, match="bob has crashed"):
                await town.ask_back()

    run_virtual(main())


def test_a_crash_of_the_caller_cancels_its_handlers() -> None:
    async def main() -> None:
        async with open_town(Network()) as town, asyncio.TaskGroup() as group:

            async def hang() -> None:
                with pytest.raises(UnreachableError, match="alice has crashed"):
                    await town.alice.call(town.at_bob.endpoint, HANG, b"", Deadline.after(60))

            group.create_task(hang())
            await town.trial.started.wait()
            town.network.crash("alice")
            await town.trial.ended.wait()

    run_virtual(main())


def test_a_crashed_host_comes_back_at_its_old_address() -> None:
    async def main() -> None:
        async with open_town(Network()) as town:
            to = town.at_bob.endpoint
            town.network.crash("bob")
            bob = town.network.transport("bob")
            async with bob.serve(to) as server:
                server.add(town.trial.service())
                await town.ask()
            assert repr(town.bob) == "<LocalTransport bob crashed>"

    run_virtual(main())


def test_an_hour_of_traffic_takes_moments() -> None:
    async def main() -> None:
        async with open_town(Network(delay=0.05)) as town:
            while now() < 3600:
                await town.ask()
                await asyncio.sleep(9.9)

    began = time.perf_counter()
    run_virtual(main(), debug=False)
    assert time.perf_counter() - began < 1.0


def test_the_same_seed_gives_the_same_history() -> None:
    async def history(seed: int) -> list[tuple[float, str]]:
        events: list[tuple[float, str]] = []
        async with open_town(Network(seed, delay=0.01, jitter=0.1, loss=0.2, duplicate=0.2)) as town:

            async def chatter(name: str) -> None:
                for _ in range(20):
                    try:
                        await town.ask(seconds=1)
                        events.append((now(), f"{name} answered"))
                    except DistqatError as error:
                        events.append((now(), f"{name} {type(error).__name__}"))

            async with asyncio.TaskGroup() as group:
                for name in ("one", "two", "three"):
                    group.create_task(chatter(name))
            events.append((now(), f"{len(town.trial.callers)} handled"))
        return events

    first = run_virtual(history(5))
    assert first == run_virtual(history(5))
    assert first != run_virtual(history(6))


def test_repr_shows_what_is_under_way() -> None:
    async def main() -> None:
        async with open_town(Network()) as town, town.alice.stream(town.at_bob.endpoint, CHAT) as chat:
            assert repr(town.network) == "<Network 2 servers, 1 links, 0 cuts>"
            assert repr(town.at_bob) == "<LocalServer bob:10001: distqat.v1.Trial>"
            assert repr(chat) == "<LocalStream trial out <Pipe 0 messages, 0 bytes> in <Pipe 0 messages, 0 bytes>>"

    run_virtual(main())
