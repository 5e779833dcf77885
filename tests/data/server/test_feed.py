"""From the ring to a trainer, over the network in memory, with the real shared memory."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distqat.data.client import LedgerClient, LocalClaims
from distqat.data.ledger import Ledger
from distqat.data.server.feed import Feed
from distqat.data.server.layout import Sizes
from distqat.data.server.messages import TAKE, Ask, Hello, Ping, Release, Wanted
from distqat.data.server.service import MOST_WANTS
from distqat.errors import DataError, DeadlineError, MessageError, WrongRunError
from distqat.ids import Endpoint, RunId
from distqat.rpc.local import Network
from distqat.rpc.transport import Service
from tests.data.server.pantries import (
    AT,
    BUDGET,
    NUM_HELD_OUT,
    NUM_SAMPLES,
    RUN,
    WAITS,
    a_source,
    differences,
    feeding,
    own,
    serving,
)
from tests.support import run_virtual, until


@pytest.fixture(params=["here", "elsewhere"])
def trainer_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the trainer looks for shared memory: that of the server, or another host's."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path if request.param == "here" else tmp_path / "elsewhere"


def test_samples_are_those_of_the_source_to_the_bit(tmp_path: Path, trainer_folder: Path) -> None:
    async def main() -> None:
        network, reading = Network(), own()
        async with serving(network, tmp_path, 2), feeding(network.transport("ada"), trainer_folder) as feed:
            await feed.wait_ready()
            assert feed.link == ("mapped" if trainer_folder == tmp_path else "sent")
            assert (feed.num_samples, feed.num_held_out) == (NUM_SAMPLES, NUM_HELD_OUT)
            for begin, end in ((0, 8), (8, 12), (3, 30), (45, 61), (200, 220), (0, 1), (16, 24)):
                assert not differences(await feed.train(begin, end), await reading.train(begin, end))
            for begin, end in ((0, 20), (8, 16), (3, 5)):
                assert not differences(await feed.held_out(begin, end), await reading.held_out(begin, end))

    run_virtual(main(), 60.0)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("trainers", [1, 3])
def test_each_epoch_has_its_order_whoever_makes_and_takes(tmp_path: Path, workers: int, trainers: int) -> None:
    async def main() -> None:
        network, ledger, draw = Network(), Ledger(BUDGET), random.Random(trainers)
        seen: dict[int, int] = {}

        async def train(name: str) -> None:
            async with feeding(network.transport(name), tmp_path) as feed:
                client = LedgerClient(name, feed, LocalClaims(ledger))
                while (batch := await client.next(draw.randint(3, 10))) is not None:
                    await asyncio.sleep(draw.random())
                    for position, label in zip(range(batch.begin, batch.end), batch.tensors["labels"], strict=True):
                        assert position not in seen
                        seen[position] = int(label)
                    await client.committed(batch)

        async with serving(network, tmp_path, workers), asyncio.TaskGroup() as group:
            for number in range(trainers):
                group.create_task(train(f"trainer{number}"))
        expected = (await own().train(0, BUDGET))["labels"].tolist()
        assert [seen[position] for position in range(BUDGET)] == expected
        epochs = [expected[begin : begin + NUM_SAMPLES] for begin in range(0, 200, NUM_SAMPLES)]
        assert all(sorted(epoch) == list(range(NUM_SAMPLES)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 4

    run_virtual(main(), 600.0)


def test_each_position_once_though_trainers_come_and_go(tmp_path: Path) -> None:
    """One leaves in the middle of a batch again and again; what it held goes to others, behind the ring's front."""

    async def main() -> None:
        network, ledger, seen = Network(), Ledger(BUDGET), dict[int, int]()

        async def train(name: str, batches: int) -> None:
            async with feeding(network.transport(name), tmp_path) as feed:
                client = LedgerClient(name, feed, LocalClaims(ledger))
                for _ in range(batches):
                    batch = await client.next(5)
                    if batch is None:
                        return
                    await asyncio.sleep(1.0)
                    labels = batch.tensors["labels"].tolist()
                    seen.update(zip(range(batch.begin, batch.end), labels, strict=True))
                    await client.committed(batch)
                held = await client.next(7)
                assert held is None or len(held.tensors["labels"]) == held.samples
            ledger.release(name)

        async with serving(network, tmp_path, 2) as served, asyncio.TaskGroup() as group:
            group.create_task(train("steady", 1000))
            for number in range(8):
                await train(f"fleeting{number}", 2)
        assert (ledger.finished, ledger.doubled, ledger.lost) == (True, 0, 0)
        expected = (await own().train(0, BUDGET))["labels"].tolist()
        assert [seen[position] for position in range(BUDGET)] == expected
        assert served.pantry.ring.statistics().leased == 0

    run_virtual(main(), 600.0)


def test_a_mapped_batch_shares_memory_and_is_leased_while_it_is_referred_to(tmp_path: Path) -> None:
    async def main() -> None:
        network = Network()
        async with serving(network, tmp_path) as served, feeding(network.transport("ada"), tmp_path) as feed:
            batch = await feed.train(0, 8)
            view = batch["inputs"][2:]
            assert not batch["inputs"].flags.owndata
            assert served.pantry.ring.statistics().leased == 1
            del batch
            await asyncio.sleep(5.0)
            assert served.pantry.ring.statistics().leased == 1
            assert view[0, 0] == (await own().train(2, 3))["inputs"][0, 0]
            del view
            await until(lambda: served.pantry.ring.statistics().leased == 0)
            assert served.pantry.ring.statistics().renewed == 0

    run_virtual(main(), 60.0)


def test_what_a_batch_is_made_of_never_changes_whoever_dies(tmp_path: Path) -> None:
    """A trainer keeps a batch, loses its connection, and others go once round the ring."""

    async def main() -> None:
        network, reading = Network(), own()
        async with serving(network, tmp_path) as served:
            async with feeding(network.transport("ada"), tmp_path) as ada:
                held = await ada.train(0, 8)
            await until(lambda: served.pantry.num_trainers == 0)
            assert served.pantry.ring.statistics().leased == 0
            async with feeding(network.transport("bob"), tmp_path) as bob:
                for begin in range(0, BUDGET - 8, 8):
                    assert not differences(await bob.train(begin, begin + 8), await reading.train(begin, begin + 8))
            assert served.pantry.ring.statistics().renewed == 1
            assert not differences(held, await reading.train(0, 8))

    run_virtual(main(), 60.0)


def test_who_holds_all_slots_gets_copies_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        network, reading = Network(), own()
        async with (
            serving(network, tmp_path, sizes=Sizes(4, 8, 8)) as served,
            feeding(network.transport("ada"), tmp_path) as ada,
            feeding(network.transport("bob"), tmp_path) as bob,
        ):
            held = [await ada.train(begin, begin + 8) for begin in range(0, BUDGET - 8, 8)]
            await until(lambda: served.pantry.ring.statistics().leased == 2)
            assert [batch["inputs"].flags.owndata for batch in held] == [False] * 2 + [True] * (len(held) - 2)
            assert not differences(await bob.train(5, 60), await reading.train(5, 60))
            for number, batch in enumerate(held):
                assert not differences(batch, await reading.train(number * 8, number * 8 + 8))
            held.clear()

    run_virtual(main(), 60.0)


def test_a_server_that_is_away_is_waited_for_with_a_reason(tmp_path: Path) -> None:
    async def main() -> None:
        network = Network()
        async with feeding(network.transport("ada"), tmp_path) as feed:
            ledger = Ledger(BUDGET)
            client = LedgerClient("p1", feed, LocalClaims(ledger))
            async with serving(network, tmp_path):
                first = await client.next(8)
            assert first is not None
            await until(lambda: "waiting: the data server" in client.waiting)
            asking = asyncio.ensure_future(client.next(8))
            await asyncio.sleep(30.0)
            assert not asking.done()
            assert "client:4000" in client.waiting
            async with serving(network, tmp_path):
                second = await asking
                assert second is not None
                assert not differences(second.tensors, await own().train(8, 16))
                assert client.waiting == ""
            assert not differences(first.tensors, await own().train(0, 8))

    run_virtual(main(), 200.0)


def test_a_slow_source_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        network = Network()
        async with serving(network, tmp_path) as served, feeding(network.transport("ada"), tmp_path) as feed:
            served.workers[0].seconds = 100.0
            asking = asyncio.ensure_future(feed.train(0, 8))
            await until(lambda: feed.waiting and "known" not in feed.waiting)
            assert feed.waiting == "waiting: the data server makes samples 0 to 8"
            # Slow is not silent: pings go on.
            assert len(await asking) == 3
            assert served.pantry.num_trainers == 1

    run_virtual(main(), 1000.0)


def test_other_data_than_before_are_not_taken(tmp_path: Path) -> None:
    async def main() -> None:
        network = Network()
        async with feeding(network.transport("ada"), tmp_path) as feed:
            async with serving(network, tmp_path):
                await feed.wait_ready()
            async with serving(network, tmp_path, source=a_source(width=4)):
                await until(lambda: "other data than before" in feed.waiting)
            async with serving(network, tmp_path):
                assert len(await feed.train(0, 8)) == 3

    run_virtual(main(), 200.0)


def test_a_sample_that_cannot_be_read_is_an_error_of_who_asks_for_it(tmp_path: Path, trainer_folder: Path) -> None:
    async def main() -> None:
        network = Network()
        async with serving(network, tmp_path) as served, feeding(network.transport("ada"), trainer_folder) as feed:
            served.workers[0].bad.add(4)
            with pytest.raises(DataError, match="sample 4 is broken"):
                await feed.train(0, 8)
            assert len(await feed.train(8, 16)) == 3
            served.workers[0].bad.clear()
            assert not differences(await feed.train(0, 8), await own().train(0, 8))

    run_virtual(main(), 60.0)


def test_who_asks_no_more_leaves_no_lease_behind(tmp_path: Path) -> None:
    async def main() -> None:
        network = Network()
        async with serving(network, tmp_path) as served, feeding(network.transport("ada"), tmp_path) as feed:
            await feed.wait_ready()
            served.workers[0].seconds = 3.0
            for begin in (0, 16):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await feed.train(begin, begin + 8)
            await until(lambda: served.pantry.ring.statistics().handed == 16, timeout=60.0)
            await until(lambda: served.pantry.ring.statistics().leased == 0)

    run_virtual(main(), 200.0)


def test_a_trainer_that_is_silent_loses_its_slots(tmp_path: Path) -> None:
    """As one that is stopped: its connection is there, and nothing comes."""

    async def main() -> None:
        network = Network()
        async with serving(network, tmp_path) as served:
            loop = asyncio.get_running_loop()
            async with network.transport("ada").stream(AT, TAKE) as stream:
                await stream.send(Ask(hello=Hello(RUN)).encode())
                await stream.receive()
                await stream.send(Ask(want=Wanted(1, False, 0, 8, True)).encode())
                await stream.receive()
                assert served.pantry.ring.statistics().leased == 1
                before = loop.time()
                with pytest.raises(DeadlineError, match="nothing was heard of the trainer for 10 s"):
                    await stream.receive()
            assert WAITS.silence - 1 < loop.time() - before < WAITS.silence + 1
            assert served.pantry.ring.statistics().leased == 0

    run_virtual(main(), 60.0)


def test_a_server_that_is_silent_is_left(tmp_path: Path) -> None:
    async def main() -> None:
        network, connections = Network(), [0]

        async def silent(stream: Any, caller: Any) -> None:
            connections[0] += 1
            await asyncio.Event().wait()

        async with serving(network, tmp_path) as served, feeding(network.transport("ada"), tmp_path) as feed:
            await feed.wait_ready()
            async with network.transport("other").serve(replace(AT, host="other")) as other:
                other.add(Service("distqat.v1.Feed", streams={"Take": silent}))

                async def elsewhere() -> Any:
                    return replace(AT, host="other")

                stopped = Feed(network.transport("bob"), elsewhere, RUN, tmp_path, WAITS)
                working = asyncio.ensure_future(stopped.work())
                await until(lambda: "nothing was heard from other:4000 for 10 s" in stopped.waiting, timeout=60.0)
                await until(lambda: connections[0] == 2, timeout=60.0)
                working.cancel()
            assert served.pantry.num_trainers == 1

    run_virtual(main(), 200.0)


@pytest.mark.parametrize("is_left", [False, True])
def test_no_more_is_asked_for_at_once_than_the_server_allows(
    tmp_path: Path, trainer_folder: Path, is_left: bool
) -> None:
    """Also where nobody waits any more for what was asked for first."""

    async def main() -> None:
        network, connections = Network(), 0

        async def locate() -> Endpoint:
            nonlocal connections
            connections += 1
            return AT

        async with serving(network, tmp_path) as served, asyncio.TaskGroup() as group:
            served.workers[0].seconds = 1.0
            feed = Feed(network.transport("ada"), locate, RUN, trainer_folder, WAITS)
            working = group.create_task(feed.work())
            await feed.wait_ready()
            asking = [asyncio.ensure_future(feed.train(at, at + 1)) for at in range(MOST_WANTS)]
            await asyncio.sleep(0.1)
            if is_left:
                for one in asking:
                    one.cancel()
            more = await asyncio.gather(*(feed.train(at, at + 1) for at in range(2 * MOST_WANTS)))
            expected = (await own().train(0, 2 * MOST_WANTS))["labels"]
            assert [int(batch["labels"][0]) for batch in more] == expected.tolist()
            await asyncio.gather(*asking, return_exceptions=True)
            assert connections == 1
            more.clear()
            working.cancel()

    run_virtual(main(), 600.0)


async def say(network: Network, asks: list[Ask]) -> None:
    """All of these, and listen to the end."""
    async with network.transport("mallory").stream(AT, TAKE) as stream:
        for ask in (*asks, Ask(release=Release(77))):
            await stream.send(ask.encode())
        while await stream.receive() is not None:
            pass


@pytest.mark.parametrize(
    ("asks", "error"),
    [
        ([Ask(ping=Ping())], MessageError),
        ([Ask(hello=Hello(RunId("other", "0123")))], WrongRunError),
        ([Ask(hello=Hello(RUN)), Ask(hello=Hello(RUN))], MessageError),
        ([Ask(hello=Hello(RUN)), Ask(want=Wanted(1, False, 4, 12, True))], MessageError),
        ([Ask(hello=Hello(RUN)), Ask(want=Wanted(1, False, 8, 8, True))], MessageError),
        ([Ask(hello=Hello(RUN)), Ask(want=Wanted(1, True, 16, 24, False))], MessageError),
    ],
)
def test_nonsense_is_refused_and_harms_nobody(asks: list[Ask], error: type[Exception], tmp_path: Path) -> None:
    async def main() -> None:
        network = Network()
        async with serving(network, tmp_path) as served, feeding(network.transport("ada"), tmp_path) as feed:
            await feed.wait_ready()
            with pytest.raises(error):
                await say(network, asks)
            assert not differences(await feed.train(0, 8), await own().train(0, 8))
            assert served.pantry.num_trainers == 1

    run_virtual(main(), 60.0)


def test_a_batch_larger_than_the_memory_comes_in_pieces(tmp_path: Path, trainer_folder: Path) -> None:
    async def main() -> None:
        network = Network()
        async with (
            serving(network, tmp_path, sizes=Sizes(4, 2, 2)),
            feeding(network.transport("ada"), trainer_folder) as feed,
        ):
            assert not differences(await feed.train(0, 100), await own().train(0, 100))

    run_virtual(main(), 60.0)
