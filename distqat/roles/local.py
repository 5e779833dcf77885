"""The baseline: the whole model in one process, with the run's data order, microbatches, budget and terms of steps."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

from distqat.config import RunConfig, Settings
from distqat.data import metrics
from distqat.data.client import Batch, LedgerClient, LocalClaims
from distqat.data.ledger import Ledger
from distqat.data.reading import EMBEDDED, OwnReading
from distqat.data.sampler import Sampler, budget, progress
from distqat.data.sources import Source, evaluation_batches, open_source
from distqat.data.tasks import find_task
from distqat.ids import MicrobatchId
from distqat.model.agreement import decide, first_scale, needs_norms
from distqat.model.build import build_whole
from distqat.model.device import Device
from distqat.model.rates import warmup_fraction
from distqat.model.stage import Stage
from distqat.model.terms import Terms
from distqat.pipeline.split import split
from distqat.roles.batches import microbatches_of
from distqat.roles.trials import EVALUATION_BATCH, add_sums, to_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalResult:
    """What one process reaches."""

    metric: str
    value: float
    samples_per_second: float
    steps: int
    seconds: float


class Alone:
    """The uncut model of a run, stepped as a pipeline steps it; to the bit, if that has codec none."""

    def __init__(self, config: RunConfig, stage: Stage, positions: int) -> None:
        self.stage = stage
        self.scale = first_scale(config.train.precision)  # Of the next step's loss.
        self._config = config
        self._positions = positions  # Samples of the whole run.
        self._warmup = warmup_fraction(config.optimizer, config.data.batch, positions)

    def __repr__(self) -> str:
        return f"<Alone {self.stage!r}, loss scale {self.scale.value:g}>"

    def step(self, batch: Batch) -> float:
        """One step on a batch, in as many microbatches as a pipeline would take for it; its mean loss."""
        step, stage = self.stage.version + 1, self.stage
        stage.loss_scale = self.scale.value
        tensors, total = to_tensors(batch.tensors), 0.0
        for index, part in enumerate(split(batch.samples, microbatches_of(self._config.data, batch.samples))):
            piece = {name: tensor[part.start : part.stop] for name, tensor in tensors.items()}
            inputs = piece.pop("inputs")
            total += stage.loss(MicrobatchId(step, index), inputs, piece, batch.samples).sums["loss"]
        stage.commit(step, Terms(progress(batch.begin, self._positions), self._factor(step), self._warmup))
        return total / batch.samples

    def _factor(self, step: int) -> float:
        optimizer, precision = self._config.optimizer, self._config.train.precision
        if not needs_norms(optimizer, precision):
            return 1.0
        verdict = decide(self.stage.square_norms(step), optimizer, precision, self.scale)
        self.scale = verdict.scale
        return verdict.factor


async def train_locally(settings: Settings) -> LocalResult:
    """Train the run's whole budget here. Raises ConfigError, ModelError, DataError."""
    config = settings.run_config()
    source = await asyncio.to_thread(open_source, config)
    positions = budget(config.train.epochs, len(source.train))
    async with Device.open(settings.daemon.device, settings.daemon.threads) as device:
        task = find_task(source.task, config.dataset)
        build = partial(build_whole, config, source.shape, task, device.torch_device)
        alone = Alone(config, await device.run(build), positions)
        loop = asyncio.get_running_loop()
        began = loop.time()
        claims = LocalClaims(Ledger(positions))
        sampler = Sampler(len(source.train), config.run.seed)
        data = LedgerClient("local", OwnReading(source, sampler, config.data.source in EMBEDDED), claims)
        while (batch := await data.next(config.data.batch)) is not None:
            loss = await device.run(partial(alone.step, batch))
            await data.committed(batch)
            if alone.stage.version % 100 == 0:
                log.info("step %d: loss %.4f", alone.stage.version, loss)
        seconds = loop.time() - began
        values = await device.run(partial(_evaluate, alone.stage, source))
        metric = metrics.METRICS[source.task]
        return LocalResult(metric, values[metric], positions / seconds, alone.stage.version, seconds)


def _evaluate(stage: Stage, source: Source) -> dict[str, float]:
    sums: dict[str, float] = {}
    for arrays in evaluation_batches(source.held_out, EVALUATION_BATCH):
        targets = to_tensors(arrays)
        inputs = targets.pop("inputs")
        result = stage.loss(MicrobatchId(stage.version + 1, 0), inputs, targets, len(inputs), train=False)
        add_sums(sums, result.sums)
    return metrics.evaluation(source.task, sums)
