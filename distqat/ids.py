"""Names of things: peers, runs, stages, rounds, endpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from distqat.errors import ConfigError

PeerId = NewType("PeerId", str)
"""Hex of the first 20 bytes of SHA-256 of the peer's public key (40 characters); its place in the DHT too."""

StageIndex = NewType("StageIndex", int)
"""Index of a stage, counted from 0 at the inputs."""

PipelineId = NewType("PipelineId", str)
"""Name of a pipeline within its run."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def is_name(text: str) -> bool:
    """Whether a pipeline may be called so: books and checkpoints are written with such names."""
    return _NAME.fullmatch(text) is not None


def short(peer: str) -> str:
    """The first eight characters of a peer's id, for people."""
    return peer[:8]


@dataclass(frozen=True, order=True)
class Endpoint:
    """Where a peer answers."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read `HOST:PORT` or `[IPV6]:PORT`; raises ConfigError."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        is_port = port.isdecimal() and len(port) <= 5 and int(port) <= 65535
        if not colon or not host or not is_port or any(letter.isspace() or letter in "/[]" for letter in host):
            raise ConfigError(f"'{text}' is not an address; write HOST:PORT")
        return cls(host, int(port))


NOWHERE = Endpoint("", 0)
"""The endpoint of a peer of which none is known."""


@dataclass(frozen=True)
class RunId:
    """One training job: peers work together only if both fields are equal."""

    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:8]}"


@dataclass(frozen=True, order=True)
class MicrobatchId:
    """One microbatch of one step on a route."""

    step: int
    index: int


@dataclass(frozen=True, order=True)
class StepRef:
    """A step of a pipeline; of what has it, all steps of the pipeline before it count too."""

    pipeline: PipelineId
    step: int

    def __str__(self) -> str:
        return f"{self.pipeline}/{self.step}"


@dataclass(frozen=True)
class Seat:
    """A stage's place on a route: which expert, where."""

    peer: PeerId
    endpoint: Endpoint
    stage: StageIndex

    def __str__(self) -> str:
        return f"stage {self.stage} on {short(self.peer)} ({self.endpoint})"
