"""A small state from one real process to another, and its peer."""

from __future__ import annotations

from bench.transfer import Form, open_expert, transferred
from bench.workers import open_worker
from tests.support import run


def test_a_state_comes_over_whole_each_time() -> None:
    form = Form(1 << 18, 2)
    assert form.nbytes == 1 << 21
    assert str(form) == "state of 2 MiB, 2 fragments"

    async def scenario() -> list[float]:
        async with (
            open_worker("donor", open_expert, "donor") as donor,
            open_worker("asker", open_expert, "asker") as asker,
        ):
            return [await transferred(form, donor, asker) for _ in range(2)]

    assert all(rate > 0 for rate in run(scenario(), timeout=90.0))
