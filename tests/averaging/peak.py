"""How much memory a round takes: a program that `test_memory` runs. Prints vectors of fp32 for each member."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from distqat.averaging.contribution import Average
from tests.averaging.members import Party, party
from tests.support import run_virtual

ELEMENTS = 6_000_000
MEMBERS = 2


def status(name: str) -> int:
    """Bytes of resident memory, now or at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


async def grown(codec: str) -> float:
    """By how many vectors a member is larger in its round than before it, at most."""
    start = torch.zeros(ELEMENTS)
    locals_ = [torch.full((ELEMENTS,), 0.5 + index) for index in range(MEMBERS)]
    async with party(locals_, start) as group:
        before = status("VmRSS")
        forget_peak()
        await one_round(group, codec)
        return (status("VmHWM") - before) / (4 * ELEMENTS * MEMBERS)


async def one_round(group: Party, codec: str) -> None:
    """Everyone holds contribution, average, and the state that may follow, until all have voted."""
    results = await group.exchange(group.group(codec))
    held = []
    for member, result in zip(group.members, results, strict=True):
        assert isinstance(result, Average)
        held.append((member.contribution, result, member.after(result)))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_virtual(grown(sys.argv[1]), debug=False)))
