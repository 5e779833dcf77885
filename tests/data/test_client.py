from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from distqat.data.client import Batch, Claims, LedgerClient, LocalClaims, RemoteClaims
from distqat.data.ledger import Ledger
from distqat.data.reading import OwnReading
from distqat.data.sampler import Sampler
from distqat.data.service import data_service
from distqat.data.sources import Arrays, ArraySplit, Source
from distqat.errors import MessageError, WrongRunError
from distqat.ids import Endpoint, RunId
from distqat.model.shapes import DataShape
from distqat.rpc.local import Network
from distqat.rpc.transport import Service
from tests.support import run, run_virtual, until

RUN = RunId("digits", "0123")
NUM_SAMPLES = 10
CLIENT = Endpoint("client", 4000)
SAMPLES = ArraySplit({"inputs": np.arange(NUM_SAMPLES, dtype=np.float32)[:, None], "labels": np.arange(NUM_SAMPLES)})
SOURCE = Source("numbers", "cv", DataShape("image", (1, 1, 1), NUM_SAMPLES), SAMPLES, SAMPLES)
SAMPLER = Sampler(NUM_SAMPLES, 7)


def client(claims: Claims, pipeline: str = "p1") -> LedgerClient:
    return LedgerClient(pipeline, OwnReading(SOURCE, SAMPLER, is_embedded=True), claims)


async def take(feed: LedgerClient, samples: int) -> Batch:
    batch = await feed.next(samples)
    assert batch is not None
    return batch


@asynccontextmanager
async def serving(network: Network, ledger: Ledger, run: RunId = RUN) -> AsyncIterator[None]:
    async with network.transport(CLIENT.host).serve(CLIENT) as server:
        server.add(data_service(run, ledger))
        yield


def remote(network: Network) -> RemoteClaims:
    return RemoteClaims(network.transport("trainer"), lambda: CLIENT, RUN)


def test_batches_come_in_the_samplers_order() -> None:
    async def main() -> None:
        ledger = Ledger(25)
        feed = client(LocalClaims(ledger))
        seen = []
        while (batch := await feed.next(4)) is not None:
            assert batch.samples == batch.end - batch.begin == len(batch.tensors["labels"])
            assert np.array_equal(batch.tensors["inputs"][:, 0], batch.tensors["labels"])
            seen += batch.tensors["labels"].tolist()
            await feed.committed(batch)
        assert seen == SAMPLER.indices(0, 25).tolist()
        assert ledger.finished

    run_virtual(main())


def test_it_waits_with_a_reason_until_the_others_are_done() -> None:
    async def main() -> None:
        ledger = Ledger(8)
        claims = LocalClaims(ledger)
        ada, bob = client(claims, "ada"), client(claims, "bob")
        first, second = await take(ada, 4), await take(ada, 4)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(bob.next(4))
            await until(lambda: bob.waiting)
            assert bob.waiting == "waiting: the last 8 samples of the run are with pipeline ada"
            assert repr(bob) == f"<LedgerClient of pipeline bob, claim 0, {bob.waiting}>"
            await ada.give_back(first)
            given = await waiting
        assert given is not None
        assert (given.begin, given.end) == (first.begin, first.end)
        assert bob.waiting == ""
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(ada.next(4))
            await until(lambda: ada.waiting)
            await ada.committed(second)
            await bob.committed(given)
        assert waiting.result() is None

    run_virtual(main())


def test_a_new_trainer_of_a_pipeline_goes_on_behind_the_old_one() -> None:
    async def main() -> None:
        ledger = Ledger(20)
        claims = LocalClaims(ledger)
        old = client(claims)
        for _ in range(2):
            await old.committed(await take(old, 4))
        new = await take(client(claims), 4)
        assert (new.begin, new.end) == (8, 12)

    run_virtual(main())


def test_remote_like_local() -> None:
    async def main() -> None:
        network, ledger = Network(), Ledger(25)
        async with serving(network, ledger):
            feed = client(remote(network))
            first = await take(feed, 10)
            await feed.give_back(first)
            again = await take(feed, 10)
            assert (again.claim, again.begin, again.end) == (2, 0, 10)
            await feed.committed(again)
            while (batch := await feed.next(10)) is not None:
                await feed.committed(batch)
        assert (ledger.committed, ledger.doubled, ledger.lost) == (25, 0, 0)

    run_virtual(main())


@pytest.mark.parametrize("seed", range(5))
def test_exactly_once_over_a_network_that_loses_and_doubles(seed: int) -> None:
    async def main() -> None:
        network, ledger = Network(seed, delay=0.01, jitter=3.0, loss=0.2, duplicate=0.3), Ledger(150)
        trained: list[int] = []

        async def trainer(pipeline: str) -> None:
            claims = RemoteClaims(network.transport(pipeline), lambda: CLIENT, RUN)
            feed = client(claims, pipeline)
            while (batch := await feed.next(7)) is not None:
                if batch.claim % 5 == 0:
                    await feed.give_back(batch)
                    continue
                trained.extend(range(batch.begin, batch.end))
                await feed.committed(batch)

        async with serving(network, ledger), asyncio.TaskGroup() as group:
            for pipeline in ("ada", "bob", "cyd"):
                group.create_task(trainer(pipeline))
        assert sorted(trained) == list(range(150))
        assert (ledger.committed, ledger.open, ledger.doubled, ledger.lost) == (150, 0, 0, 0)

    run_virtual(main())


def test_a_cancelled_claim_is_not_lost() -> None:
    async def main() -> None:
        network, ledger = Network(delay=1.0), Ledger(20)
        async with serving(network, ledger):
            feed = client(remote(network))
            async with asyncio.TaskGroup() as group:
                task = group.create_task(feed.next(4))
                await until(lambda: ledger.open)
                task.cancel()
            assert (await take(feed, 4)).begin == 0
            assert ledger.open == 4

    run_virtual(main())


class SlowSamples(ArraySplit):
    """Large ones, which are read on a thread; each read waits until it may go on."""

    def __init__(self) -> None:
        super().__init__({"inputs": np.zeros((NUM_SAMPLES, 1 << 16), np.float32), "labels": np.arange(NUM_SAMPLES)})
        self.may_go_on = threading.Event()
        self.threads: list[str] = []

    def batch(self, indices: npt.NDArray[np.int64]) -> Arrays:
        self.threads.append(threading.current_thread().name)
        assert self.may_go_on.wait(10.0)
        return super().batch(indices)


def test_large_batches_are_read_beside_the_event_loop_and_not_lost_when_that_is_cancelled() -> None:
    async def main() -> None:
        ledger, samples = Ledger(20), SlowSamples()
        feed = LedgerClient("p1", OwnReading(replace(SOURCE, train=samples), SAMPLER), LocalClaims(ledger))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(feed.next(4))
            await until(lambda: samples.threads)
            task.cancel()
        samples.may_go_on.set()
        batch = await take(feed, 4)
        assert (batch.begin, batch.end, ledger.open) == (0, 4, 4)
        assert (await take(feed, 4)).begin == 4
        assert len(samples.threads) == 3
        assert threading.main_thread().name not in samples.threads

    run(main())


class WatchedSamples(ArraySplit):
    """Knows on which thread each batch was read."""

    def __init__(self) -> None:
        super().__init__({"inputs": np.zeros((NUM_SAMPLES, 1), np.float32), "labels": np.arange(NUM_SAMPLES)})
        self.threads: list[int] = []

    def batch(self, indices: npt.NDArray[np.int64]) -> Arrays:
        self.threads.append(threading.get_ident())
        return super().batch(indices)


@pytest.mark.parametrize("is_embedded", [True, False])
def test_only_small_batches_of_an_embedded_source_are_read_on_the_event_loop(is_embedded: bool) -> None:
    """However small it is, a batch of another source may take long to decode."""

    async def main() -> None:
        samples = WatchedSamples()
        reading = OwnReading(replace(SOURCE, train=samples), SAMPLER, is_embedded)
        for begin in (0, 2, 4):
            await reading.train(begin, begin + 2)
        is_inline = [thread == threading.get_ident() for thread in samples.threads]
        assert is_inline == [False, is_embedded, is_embedded]

    run(main())


def test_small_batches_are_read_at_once() -> None:
    async def main() -> None:
        feed = client(LocalClaims(Ledger(20)))
        await take(feed, 4)  # The first one tells how large they are.
        reading = asyncio.ensure_future(feed.next(4))
        await asyncio.sleep(0)
        assert reading.done()

    run(main())


def test_it_waits_for_a_client_that_is_away() -> None:
    async def main() -> None:
        network, ledger = Network(), Ledger(8)
        known: list[Endpoint] = []
        claims = RemoteClaims(network.transport("trainer"), lambda: known[0] if known else None, RUN)
        feed = client(claims)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(take(feed, 8))
            await until(lambda: feed.waiting)
            assert feed.waiting == "waiting: no client of run digits is known"
            known.append(CLIENT)
            await until(lambda: "at client:4000" in feed.waiting)
            async with network.transport(CLIENT.host).serve(CLIENT) as server:
                await until(lambda: "Data" in feed.waiting)  # It listens, but the role is not up yet.
                server.add(data_service(RUN, ledger))
                batch = await waiting
        assert feed.waiting == ""
        async with asyncio.TaskGroup() as group:
            resolving = group.create_task(feed.committed(batch))
            await until(lambda: feed.waiting)
            async with serving(network, ledger):
                await resolving
        assert ledger.finished

    run_virtual(main())


def test_a_client_that_comes_back_with_its_saved_ledger_loses_and_doubles_nothing() -> None:
    async def main() -> None:
        network, draw = Network(3, delay=0.1, jitter=0.5), random.Random(4)
        saved = Ledger(120).snapshot()
        trained: list[int] = []

        async def trainer(pipeline: str) -> None:
            feed = client(RemoteClaims(network.transport(pipeline), lambda: CLIENT, RUN), pipeline)
            while (batch := await feed.next(7)) is not None:
                trained.extend(range(batch.begin, batch.end))
                await feed.committed(batch)

        async def client_that_crashes() -> None:
            nonlocal saved
            while True:
                ledger = Ledger.restore(saved)

                async def save(ledger: Ledger = ledger) -> None:
                    nonlocal saved
                    await asyncio.sleep(0.05)
                    saved = ledger.snapshot()

                async with network.transport(CLIENT.host).serve(CLIENT) as server:
                    server.add(data_service(RUN, ledger, save))
                    await asyncio.sleep(draw.uniform(0.5, 5.0))
                    network.crash(CLIENT.host)

        async with asyncio.TaskGroup() as group:
            crashing = group.create_task(client_that_crashes())
            trainers = [group.create_task(trainer(pipeline)) for pipeline in ("ada", "bob")]
            await asyncio.wait(trainers)
            crashing.cancel()
        ledger = Ledger.restore(saved)
        assert sorted(trained) == list(range(120))
        assert (ledger.committed, ledger.open, ledger.doubled, ledger.lost) == (120, 0, 0, 0)

    run_virtual(main())


def test_the_ledger_of_another_run_is_refused() -> None:
    async def main() -> None:
        network = Network()
        async with serving(network, Ledger(8), RunId("digits", "4567")):
            with pytest.raises(WrongRunError, match="samples of run digits@0123, but the ledger here is of run"):
                await client(remote(network)).next(4)

    run_virtual(main())


def test_an_answer_that_is_garbage_is_an_error() -> None:
    async def garbage(data: bytes, _: object) -> bytes:
        return b"\xff" * 9

    async def main() -> None:
        network = Network()
        async with network.transport(CLIENT.host).serve(CLIENT) as server:
            server.add(Service("distqat.v1.Data", calls={"Claim": garbage}))
            with pytest.raises(MessageError):
                await client(remote(network)).next(4)

    run_virtual(main())


def test_a_batch_that_had_been_taken_away_is_said(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        ledger = Ledger(8)
        feed = client(LocalClaims(ledger))
        batch = await take(feed, 4)
        ledger.release("p1")
        await feed.committed(batch)
        assert "samples 0 to 4 of pipeline p1 are committed, but had been taken from it" in caplog.text
        assert repr(batch) == "Batch(claim=1, begin=0, end=4)"

    run_virtual(main())
