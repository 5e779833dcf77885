"""Where the time of a step went: seconds of the device, of codecs and of links, and bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DOWN, UP = "down", "up"
"""Which way a message goes: from the trainer to the last stage, or back."""


@dataclass(frozen=True)
class Sent:
    """Payloads that were sent one way."""

    bytes: int = 0
    raw: int = 0


@dataclass(frozen=True)
class LinkState:
    """What is known of a link in the direction in which this process sends."""

    rate: float = 0.0
    """Bytes a second; 0 while it is unknown."""
    compressed: bool = False
    """Whether the last payload was compressed after the codec."""


@dataclass(frozen=True)
class StepSummary:
    """Where the time of one step, or of several, went. Codec and wire work goes on while the device computes, so these
    seconds do not add up to the whole; `compute`, `round` and `wait` do."""

    step: int = 0
    begin: float = 0.0
    """When the step before was committed here, or, in the first step of a route, when that opened."""
    end: float = 0.0
    """When it was committed here."""
    seconds: float = 0.0
    """From begin to end."""
    compute: float = 0.0
    """The device computed."""
    round: float = 0.0
    """The stage was in an outer round with its siblings."""
    wait: float = 0.0
    """The device was idle; 0 for a trainer, which has none."""
    codec: float = 0.0
    wire: float = 0.0
    down: Sent = Sent()
    up: Sent = Sent()
    spans: int = 0
    """How many there were of this step."""
    stashed: int = 0
    """Bytes that ever waited for gradients here at once, at most; see `model.stash`."""


def values(summary: StepSummary, links: Mapping[str, LinkState]) -> dict[str, float]:
    """A summary as the values of a metric line. Seconds, bytes, bytes a second; compressed is 0 or 1."""
    line: dict[str, float] = {
        "step": summary.step,
        "seconds": summary.seconds,
        "compute": summary.compute,
        "round": summary.round,
        "wait": summary.wait,
        "codec": summary.codec,
        "wire": summary.wire,
        "bytes": summary.down.bytes + summary.up.bytes,
        "raw": summary.down.raw + summary.up.raw,
        "stashed": summary.stashed,
    }
    for way, link in links.items():
        line[f"link_rate_{way}"] = link.rate
        line[f"compressed_{way}"] = float(link.compressed)
    return line


def together(summaries: Iterable[StepSummary]) -> StepSummary:
    """The sums of several steps, in order."""
    steps = list(summaries)
    if not steps:
        return StepSummary()
    return StepSummary(
        step=steps[-1].step,
        begin=steps[0].begin,
        end=steps[-1].end,
        seconds=sum(step.seconds for step in steps),
        compute=sum(step.compute for step in steps),
        round=sum(step.round for step in steps),
        wait=sum(step.wait for step in steps),
        codec=sum(step.codec for step in steps),
        wire=sum(step.wire for step in steps),
        down=Sent(sum(step.down.bytes for step in steps), sum(step.down.raw for step in steps)),
        up=Sent(sum(step.up.bytes for step in steps), sum(step.up.raw for step in steps)),
        spans=sum(step.spans for step in steps),
        stashed=max(step.stashed for step in steps),
    )
