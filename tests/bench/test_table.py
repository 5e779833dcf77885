"""JSON lines become tables."""

from __future__ import annotations

from bench.case import Case, Goal
from bench.table import tables


def test_each_bench_has_a_table_of_its_lines() -> None:
    lines = [
        Case("stream", "tensors", "GB/s", "higher", "grpc.aio", Goal("ratio", 0.8)).line([1.0, 1.2, 1.1], [1.0]),
        Case("start", "help", "s", "lower", goal=Goal("value", 0.5)).line([0.75]),
        Case("stream", "bytes", "MB", "lower").line([3.0]),
    ]
    assert list(tables([line.to_json() + "\n" for line in lines])) == [
        "## stream",
        "",
        "| case | ours | peer | peer's | ratio | goal | spread |",
        "|---|---|---|---|---|---|---|",
        "| tensors | 1.1 GB/s | grpc.aio | 1 | 1.10 | ratio >= 0.8: met | 18% |",
        "| bytes | 3 MB |  |  |  |  | 0% |",
        "",
        "## start",
        "",
        "| case | ours | peer | peer's | ratio | goal | spread |",
        "|---|---|---|---|---|---|---|",
        "| help | 0.75 s |  |  |  | value <= 0.5: missed | 0% |",
        "",
    ]


def test_empty_lines_are_no_lines() -> None:
    assert list(tables(["\n", ""])) == []
