"""`python -m bench ... | python -m bench.table`: the JSON lines of benches as the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

COLUMNS = ("case", "ours", "peer", "peer's", "ratio", "goal", "spread")


def tables(lines: Iterable[str]) -> Iterator[str]:
    """Lines of Markdown: a heading and a table for each bench, in the order in which they come."""
    benches: dict[str, list[dict[str, Any]]] = {}
    for text in lines:
        if text.strip():
            line = json.loads(text)
            benches.setdefault(line["bench"], []).append(line)
    for bench, found in benches.items():
        yield from (f"## {bench}", "", _row(COLUMNS), "|---" * len(COLUMNS) + "|")
        yield from (_row(_cells(line)) for line in found)
        yield ""


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    has_peer = line["peer_value"] is not None
    return (
        line["case"],
        f"{line['value']:g} {line['unit']}",
        line["peer"] or "",
        f"{line['peer_value']:g}" if has_peer else "",
        f"{line['ratio']:.2f}" if line["ratio"] is not None else "",
        f"{line['goal']}: {'met' if line['ok'] else 'missed'}" if line["goal"] else "",
        f"{line['spread']:.0%}",
    )


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in tables(sys.stdin))
