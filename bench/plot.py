"""`python -m bench.plot RESULTS FILE.svg`: what `python -m bench diloco --keep RESULTS` has found, as a picture.

Held-out loss over the bytes that a replica sends and receives: lower and further left is better.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from xml.sax.saxutils import escape

from bench.arms import FLOORS, SYNCHRONOUS, Way, ways
from bench.diloco import MEGA, synchronous_bytes
from bench.results import Result, Results

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 24, 52
COLOURS = {"none": "#1b4f8f", "int8": "#2a9d5c", "int4": "#c77700", "int2": "#b3262e", "gradients": "#555555"}
RADIUS = 5
MARGIN = 0.08
"""Of the range of losses, above and below."""


@dataclass(frozen=True)
class Dot:
    """One way to synchronise."""

    megabytes: float
    loss: float
    kind: str
    """Of COLOURS."""
    is_square: bool = False
    is_hollow: bool = False


@dataclass(frozen=True)
class Level:
    """A loss that costs no bytes."""

    loss: float
    label: str


def dots(results: Sequence[Result]) -> Iterator[Dot]:
    """Means over the seeds; the synchronous run stands where its gradients in fp32 would bring it."""
    by_name = _by_name(results)
    exact = by_name.get(SYNCHRONOUS.name, [])
    for way in ways():
        found = by_name.get(str(way), [])
        if found and way.replicas > 1 and not way.variant:
            yield Dot(
                mean(result.bytes for result in found) / MEGA,
                mean(result.loss for result in found),
                way.codec,
                is_square=way.is_overlapped,
                is_hollow=way.replicas == 2,
            )
    if exact:
        loss, steps = mean(result.loss for result in exact), exact[0].steps
        for replicas in FLOORS:
            total = synchronous_bytes(replicas, exact[0].parameters, steps)
            yield Dot(total / MEGA, loss, "gradients", is_hollow=replicas == 2)


def levels(results: Sequence[Result]) -> Iterator[Level]:
    """The synchronous run, one replica with outer steps, and the floors."""
    by_name = _by_name(results)
    wanted = {SYNCHRONOUS.name: "synchronous", str(Way(1)): "k=1"}
    wanted |= {floor.name: f"1/{replicas} of the tokens" for replicas, floor in FLOORS.items()}
    for name, label in wanted.items():
        if found := by_name.get(name):
            yield Level(mean(result.loss for result in found), label)


def svg(points: Sequence[Dot], lines: Sequence[Level]) -> str:
    """The picture."""
    losses = [*(point.loss for point in points), *(line.loss for line in lines)]
    margin = MARGIN * (max(losses) - min(losses)) or MARGIN
    frame = _Frame(
        math.floor(math.log10(min(point.megabytes for point in points))),
        math.ceil(math.log10(max(point.megabytes for point in points))),
        min(losses) - margin,
        max(losses) + margin,
    )
    parts = [*frame.axes(), *(frame.level(line) for line in lines), *(frame.dot(point) for point in points), *_legend()]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{_rect(0, 0, WIDTH, HEIGHT)}\n{body}\n</svg>\n'


@dataclass(frozen=True)
class _Frame:
    """From numbers to places."""

    least_power: int
    most_power: int
    least_loss: float
    most_loss: float

    def x(self, megabytes: float) -> float:
        share = (math.log10(megabytes) - self.least_power) / max(1, self.most_power - self.least_power)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        share = (self.most_loss - loss) / (self.most_loss - self.least_loss)
        return TOP + share * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> Iterator[str]:
        for power in range(self.least_power, self.most_power + 1):
            x = self.x(10.0**power)
            yield _line(x, TOP, x, HEIGHT - BOTTOM, "#dddddd")
            yield _text(x, HEIGHT - BOTTOM + 16, f"{10.0**power:g}", "middle")
        step = _step(self.most_loss - self.least_loss)
        for number in range(math.ceil(self.least_loss / step), math.floor(self.most_loss / step) + 1):
            y = self.y(number * step)
            yield _line(LEFT, y, WIDTH - RIGHT, y, "#dddddd")
            yield _text(LEFT - 6, y + 4, f"{number * step:.2f}", "end")
        middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
        yield _text(middle, HEIGHT - 12, "MB sent and received by a replica", "middle")
        yield _text(LEFT, TOP - 8, "held-out loss, nats for each byte", "start")

    def level(self, line: Level) -> str:
        y = self.y(line.loss)
        dashes = ' stroke-dasharray="5 4"'
        return _line(LEFT, y, WIDTH - RIGHT, y, "#888888", dashes) + _text(
            WIDTH - RIGHT + 6, y + 4, line.label, "start"
        )

    def dot(self, point: Dot) -> str:
        x, y = self.x(point.megabytes), self.y(point.loss)
        return _mark(x, y, point.kind, point.is_square, point.is_hollow)


def _legend() -> Iterator[str]:
    x, y = WIDTH - RIGHT + 30, HEIGHT - BOTTOM - 150
    rows = [(kind, False, False, kind if kind != "gradients" else "gradients, each step") for kind in COLOURS]
    rows += [
        ("none", False, True, "hollow: 2 replicas"),
        ("none", False, False, "filled: 4 replicas"),
        ("none", True, False, "square: overlapped"),
    ]
    for number, (kind, is_square, is_hollow, label) in enumerate(rows):
        yield _mark(x, y + 18 * number, kind, is_square, is_hollow) + _text(x + 12, y + 18 * number + 4, label, "start")


def _mark(x: float, y: float, kind: str, is_square: bool, is_hollow: bool) -> str:
    colour = COLOURS[kind]
    paint = f'fill="{"white" if is_hollow else colour}" stroke="{colour}" stroke-width="2"'
    if is_square:
        side = 2 * RADIUS
        return f'<rect x="{x - RADIUS:.1f}" y="{y - RADIUS:.1f}" width="{side}" height="{side}" {paint}/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" {paint}/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="white"/>'


def _step(range_: float) -> float:
    """Between two lines of the grid: a round number, of which four to nine fit."""
    power = 10.0 ** math.floor(math.log10(range_ / 4))
    return next(power * factor for factor in (5, 2, 1) if power * factor <= range_ / 4)


def _by_name(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Of the longest runs only: a file may hold shorter ones too."""
    most = max((result.steps for result in results), default=0)
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.steps == most:
            found.setdefault(result.arm, []).append(result)
    return found


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description="Draw what bench diloco has found.")
    parser.add_argument("results", type=Path, help="file of `python -m bench diloco --keep`")
    parser.add_argument("picture", type=Path, help="SVG to be written")
    chosen = parser.parse_args()
    found = Results(chosen.results).all()
    chosen.picture.write_text(svg(list(dots(found)), list(levels(found))))


if __name__ == "__main__":
    main()
