"""What the drives of one trainer run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distqat.config import RunConfig
from distqat.data.reading import Reading
from distqat.data.sampler import budget
from distqat.data.sources import source_shape
from distqat.discovery.records import Pace
from distqat.ids import PeerId
from distqat.rpc.transport import Transport
from distqat.telemetry import Telemetry


@dataclass(frozen=True)
class Fuel:
    """Of one trainer, for all of its drives."""

    me: PeerId
    transport: Transport
    config: RunConfig
    reading: Reading
    telemetry: Telemetry
    paces: Callable[[], Sequence[Pace]]  # Of all pipelines of the run, as far as they are known now.
    suspect: Callable[[PeerId, str], None] = lambda peer, reason: None  # Told where a route broke, and why.

    @property
    def budget(self) -> int:
        """Samples of the whole run."""
        return budget(self.config.train.epochs, self.reading.num_samples)

    @property
    def task(self) -> str:
        """What is learned: cv, llm."""
        return source_shape(self.config).task
