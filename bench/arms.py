"""What is compared in `bench/diloco.py`: ways to train the same model on the same samples. An arm is one of them.

All see as many samples at each step, but for the floors: these show what one replica would reach on its part alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from distqat.config import RunConfig
from distqat.sections import DataSection, ModelSection, OptimizerSection, RoundCodec, RunSection, SyncSection

BATCH = 32
"""Samples of a step, all replicas together."""

INNER_STEPS = 25
FRAGMENTS = 2
OVERLAP = 1
"""Steps; at most a twentieth of the inner ones."""

OUTER_RATES = {1: 0.5, 2: 0.5, 4: 0.6}
"""By replicas: in the middle of what is published (0.4 to 0.6 for up to two, 0.6 for four)."""

LOSSY: tuple[RoundCodec, ...] = ("int8", "int4", "int2")
REPLICAS = (2, 4)


WITHOUT, EAGER, LATE = "without feedback", "eager", "late"
VARIANTS: Mapping[str, Mapping[str, object]] = {
    WITHOUT: {"error_feedback": 0.0},
    EAGER: {"overlap": INNER_STEPS, "eager": True},
    LATE: {"overlap": INNER_STEPS - 1, "merge": 0.5},
}
WHEN = {EAGER: "one round late, eager", LATE: "one round late, mixed half and half"}


@dataclass(frozen=True)
class Way:
    """How replicas synchronise, in few words."""

    replicas: int
    codec: RoundCodec = "none"
    is_overlapped: bool = False
    variant: str = ""
    """Another one than the usual: WITHOUT feedback, EAGER or LATE."""

    @property
    def exact(self) -> Way:
        """The same in fp32."""
        return Way(self.replicas, "none", self.is_overlapped)

    def __str__(self) -> str:
        feedback = (
            {True: " with feedback", False: f" {WITHOUT}"}[self.variant != WITHOUT] if self.codec == "int2" else ""
        )
        when = WHEN.get(self.variant, "overlapped" if self.is_overlapped else "blocking")
        return f"k={self.replicas}, {self.codec}{feedback}, {when}"

    def sync(self, warmup_steps: int) -> SyncSection:
        """As settings."""
        chosen: dict[str, object] = {"overlap": OVERLAP, "fragments": FRAGMENTS} if self.is_overlapped else {}
        chosen |= VARIANTS.get(self.variant, {})
        rate = OUTER_RATES[self.replicas]
        usual = {"inner_steps": INNER_STEPS, "outer_learning_rate": rate, "outer_momentum": 0.9, "ramp_rounds": 0}
        return SyncSection.model_validate({**usual, "codec": self.codec, "warmup_steps": warmup_steps, **chosen})


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    sync: SyncSection | None = None
    """None: one process, no rounds."""
    replicas: int = 1
    share: int = 1
    """What is trained on is the batch divided by this."""

    @property
    def samples(self) -> int:
        """Of one replica in one step."""
        return BATCH // (self.replicas * self.share)

    def config(self, seed: int) -> RunConfig:
        """The run of a seed: a transformer of 135 k parameters on bytes."""
        return RunConfig(
            run=RunSection(name="diloco", seed=seed),
            model=ModelSection(name="gpt", stages=1, options={"layers": 2, "width": 64, "heads": 4, "dropout": 0.0}),
            data=DataSection(source="pydocs", sequence=32, batch=BATCH, microbatches=1),
            optimizer=OptimizerSection(learning_rate=2e-3),
            sync=self.sync or SyncSection(),
        )

    def described(self, seed: int, steps: int) -> str:
        """All that a result depends on, but for the code."""
        config = self.config(seed)
        settings: dict[str, object] = {
            name: getattr(config, name).model_dump() for name in ("model", "data", "optimizer")
        }
        settings["sync"] = self.sync.model_dump() if self.sync is not None else None
        settings |= {"replicas": self.replicas, "share": self.share, "steps": steps, "seed": seed}
        return json.dumps(settings, sort_keys=True)


SYNCHRONOUS = Arm("synchronous")
"""One process on whole batches: what synchronous data parallel training computes, whatever the number of replicas."""

FLOORS = {number: Arm(f"one process, 1/{number} of the tokens", share=number) for number in REPLICAS}
"""By replicas: on the part that one of them sees."""


def ways() -> Iterator[Way]:
    """All of them, those first that most is asked of."""
    for is_overlapped in (False, True):
        for replicas in reversed(REPLICAS):
            yield from (Way(replicas, codec, is_overlapped) for codec in ("none", *LOSSY))
    # A lone member sends nothing, whatever the codec.
    yield from (Way(1, "none", is_overlapped) for is_overlapped in (False, True))
    most = max(REPLICAS)
    yield from (Way(most, "int2", variant=WITHOUT), Way(most, variant=EAGER), Way(most, variant=LATE))


def arm(way: Way, warmup_steps: int) -> Arm:
    """Of a way to synchronise."""
    return Arm(str(way), way.sync(warmup_steps), way.replicas)
