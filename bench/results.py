"""Results of trainings that take long, one JSON object on each line of a file: what is there is not measured again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What one arm has reached with one seed."""

    arm: str
    seed: int
    steps: int
    settings: str
    """All that it depends on; one of other settings is another result."""
    loss: float
    """Held out, nats for each byte."""
    bytes: float
    """Sent and received by a replica in all rounds."""
    rounds: int
    parameters: int
    """Of the model."""
    seconds: float


class Results:
    """Those of a file, and those that come."""

    def __init__(self, file: Path | None) -> None:
        """None: they are kept nowhere. Raises ValueError for a file of something else."""
        self._file = file
        self._found: dict[str, Result] = {}  # By settings.
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                self._keep(_read(line, file))

    def __len__(self) -> int:
        return len(self._found)

    def find(self, settings: str) -> Result | None:
        """The result of these settings."""
        return self._found.get(settings)

    def add(self, result: Result) -> None:
        """It is in the file when this returns."""
        self._keep(result)
        if self._file is not None:
            with self._file.open("a") as lines:
                lines.write(json.dumps(asdict(result)) + "\n")

    def all(self) -> list[Result]:
        """In the order in which they came."""
        return list(self._found.values())

    def _keep(self, result: Result) -> None:
        self._found[result.settings] = result


def _read(line: str, file: Path) -> Result:
    try:
        return Result(**json.loads(line))
    except (TypeError, ValueError):
        raise ValueError(f"{file} does not hold results of this bench: {line[:80]}") from None
