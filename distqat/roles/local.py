"""The baseline: the whole model in one process, with the run's data order, microbatches and budget."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

from distqat.config import Settings
from distqat.data import metrics
from distqat.data.client import Batch, LedgerClient, LocalClaims
from distqat.data.ledger import Ledger
from distqat.data.sampler import Sampler, budget
from distqat.data.sources import Source, evaluation_batches, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.build import build_whole
from distqat.model.device import Device
from distqat.model.stage import Stage
from distqat.pipeline.split import split
from distqat.roles.drive import EVALUATION_BATCH, add_sums, to_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalResult:
    """What one process reaches."""

    metric: str
    value: float
    samples_per_second: float
    steps: int
    seconds: float


async def train_locally(settings: Settings) -> LocalResult:
    """Train the run's whole budget here. Raises ConfigError, ModelError, DataError."""
    config = settings.run_config()
    source = await asyncio.to_thread(open_source, config.data)
    async with Device.open(settings.daemon.device, settings.daemon.threads) as device:
        stage = await device.run(partial(build_whole, config, source.shape, find_task(source.task)))
        loop = asyncio.get_running_loop()
        began = loop.time()
        samples = 0
        ledger = Ledger(budget(config.train.epochs, len(source.train)))
        data = LedgerClient("local", source, Sampler(len(source.train), config.run.seed), LocalClaims(ledger))
        while (batch := await data.next(config.data.batch)) is not None:
            loss = await device.run(partial(train_step, stage, batch, config.data.microbatches))
            await data.committed(batch)
            samples += batch.samples
            if stage.version % 100 == 0:
                log.info("step %d: loss %.4f", stage.version, loss)
        seconds = loop.time() - began
        values = await device.run(partial(_evaluate, stage, source))
        metric = metrics.METRICS[source.task]
        return LocalResult(metric, values[metric], samples / seconds, stage.version, seconds)


def train_step(stage: Stage, batch: Batch, microbatches: int) -> float:
    """One step of a one-stage model; its mean loss."""
    tensors = to_tensors(batch.tensors)
    total, step = 0.0, stage.version + 1
    for index, part in enumerate(split(batch.samples, microbatches)):
        piece = {name: tensor[part.start : part.stop] for name, tensor in tensors.items()}
        inputs = piece.pop("inputs")
        total += stage.loss(MicrobatchId(step, index), inputs, piece, batch.samples).sums["loss"]
    stage.commit(step)
    return total / batch.samples


def _evaluate(stage: Stage, source: Source) -> dict[str, float]:
    sums: dict[str, float] = {}
    for arrays in evaluation_batches(source.held_out, EVALUATION_BATCH):
        targets = to_tensors(arrays)
        inputs = targets.pop("inputs")
        result = stage.loss(MicrobatchId(stage.version + 1, 0), inputs, targets, len(inputs), train=False)
        add_sums(sums, result.sums)
    return metrics.evaluation(source.task, sums)
