"""What is trained on samples of the data server is what is trained on those that are read in the process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distqat.config import load
from distqat.data.client import LedgerClient, LocalClaims
from distqat.data.ledger import Ledger
from distqat.data.reading import OwnReading, Reading
from distqat.data.sampler import Sampler
from distqat.data.sources import open_source
from distqat.data.tasks import find_task
from distqat.model.build import build_whole
from distqat.roles.local import Alone
from distqat.rpc.local import Network
from tests.data.server import pantries
from tests.support import run_virtual


@pytest.mark.parametrize("is_mapped", [True, False])
def test_the_same_numbers_to_the_bit(tmp_path: Path, is_mapped: bool) -> None:
    config = load(overrides=["model.name=mlp", "daemon.threads=1"]).run_config()
    source = open_source(config)
    folder = tmp_path if is_mapped else tmp_path / "elsewhere"

    async def train(reading: Reading) -> torch.Tensor:
        alone = Alone(config, build_whole(config, source.shape, find_task(source.task)), 1000)
        client = LedgerClient("p1", reading, LocalClaims(Ledger(1000)))
        for _ in range(6):
            batch = await client.next(32)
            assert batch is not None
            alone.step(batch)
            await client.committed(batch)
        return alone.stage.flatten()

    async def main() -> None:
        network = Network()
        expected = await train(OwnReading(source, Sampler(len(source.train), pantries.SEED)))
        async with (
            pantries.serving(network, tmp_path, 2, source=source),
            pantries.feeding(network.transport("ada"), folder) as feed,
        ):
            assert torch.equal(await train(feed), expected)
            assert feed.link == ("mapped" if is_mapped else "sent")

    run_virtual(main(), 600.0)
