"""Two siblings in real processes: a round, gloo beside it, the error of the average, and a death in mid-round."""

from __future__ import annotations

from bench.group import open_group
from bench.machines import HERE
from bench.runs import Run
from distqat.sections import SyncSection
from tests.support import run

ELEMENTS = 1 << 20
EXACT = SyncSection(warmup_steps=0, codec="none")
ROUNDED = SyncSection(warmup_steps=0, codec="int8")


def test_a_group_takes_rounds_and_survives_a_death() -> None:
    async def scenario() -> tuple[Run, Run, float, Run, Run]:
        async with open_group([HERE, HERE]) as group:
            await group.meet()
            await group.prepare(ELEMENTS, EXACT)
            ours = await group.round()
            gloo = await group.all_reduce()
            error = await group.error(ELEMENTS, ROUNDED)
            await group.prepare(ELEMENTS, EXACT)
            # Before the first round one of two does not go on alone until it is sure that the other is dead.
            await group.round()
            killed = await group.kill(ELEMENTS // 2)
            await group.replace_last()
            await group.prepare(ELEMENTS, EXACT)
            return ours, gloo, error, killed, await group.round()

    ours, gloo, error, killed, again = run(scenario(), timeout=90.0)
    for one in (ours, again):
        assert one.has_succeeded
        assert one.num_results == 1
        # Each sends half of its vector, and half of the average: 4 bytes an element.
        assert 8 * ELEMENTS <= one.sent < 8.1 * ELEMENTS
        assert one.wire >= one.sent
        assert one.formed is not None
        assert 0 < one.formed < one.seconds
        assert one.cpu > 0
    assert gloo.seconds > 0
    assert 1e-4 < error < 0.012
    assert killed.has_succeeded, "the one that is left commits"
    assert killed.num_results == 1
