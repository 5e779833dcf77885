"""A newcomer takes a state from real processes, one of which is killed or stopped in the middle of a chunk.

It reaches each of them by a slow link of its own, which holds still at an exact byte until that has happened.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from distqat.averaging.spans import Shape
from distqat.averaging.state.snapshot import CHUNK_BYTES
from distqat.ids import Endpoint
from tests.e2e import family as families
from tests.e2e.family import Facts, Family, Member, open_family
from tests.proxy import Cut, Proxy, open_proxies
from tests.proxy import Shape as Link
from tests.support import run

pytestmark = pytest.mark.e2e

DONORS = ("alice", "bob", "carol")
NEWCOMER = "dave"

SHAPE = Shape(3_000_000, 3_001_000)
STATE_BYTES = 4 * (SHAPE.num_elements + SHAPE.num_parameters)
"""23 chunks: anchor and momentum."""

SYNC = {**families.SYNC, "max_wait": 8.0}
"""Nobody is given up while a link holds still; what hangs is taken over by others long before."""

LINK = Link(rate=6e6)

FROM_VICTIM = int(4.5 * CHUNK_BYTES)
FROM_OTHERS = int(5.5 * CHUNK_BYTES)
"""Bytes that the newcomer has got when it happens, of which four and five chunks are whole."""

MOST_FROM_VICTIM = int(6.1 * CHUNK_BYTES)
"""It was asked for six chunks by then, and the kernel of one that is stopped sends on what it was given."""

AGAIN_BYTES = 7 * CHUNK_BYTES
"""That may come in vain, at most: chunks under way, and those that two donors give. Who begins anew takes 14."""


@asynccontextmanager
async def open_transfer(maker: subprocess.Popen[str], folder: Path) -> AsyncIterator[tuple[Family, dict[str, Proxy]]]:
    """Three that have committed a round, and a newcomer amid its transfer: all three links hold still in a chunk."""
    async with open_family(maker, folder, SYNC, SHAPE) as family:
        donors = await family.found(*DONORS)
        assert not any(result["failure"] for result in await family.round(*donors))
        await family.settled(1, *donors)
        async with open_proxies([Endpoint(donor.host, donor.port) for donor in donors], LINK) as found:
            links = dict(zip(DONORS, found, strict=True))
            family.detours = {(NEWCOMER, name): link.endpoint for name, link in links.items()}
            [newcomer] = await family.start(NEWCOMER)
            await family.sees(newcomer, 1, *DONORS)
            held = [link.cut_at(bytes_of(name), "up", Cut.SILENCE) for name, link in links.items()]
            newcomer.send(do="catch up")
            async with asyncio.timeout(20):
                for one in held:
                    await one.wait()
            assert newcomer.results.empty()
            yield family, links


def bytes_of(name: str) -> int:
    return FROM_VICTIM if name == "bob" else FROM_OTHERS


def strike(family: Family, how: signal.Signals) -> list[Member]:
    """Bob's end; who is left of the donors."""
    family.members["bob"].signal(how)
    return [family.members[name] for name in DONORS if name != "bob"]


def check_caught(family: Family, links: dict[str, Proxy], caught: Facts) -> None:
    """It holds what was committed when it came, and little of it has travelled twice."""
    assert (caught["failure"], caught["round"]) == ("", 1)
    assert {caught["digest"]} == family.history[1]
    came = {name: link.statistics().up for name, link in links.items()}
    assert STATE_BYTES < sum(came.values()) < STATE_BYTES + AGAIN_BYTES
    assert FROM_VICTIM <= came["bob"] < MOST_FROM_VICTIM


def check_round(family: Family, results: list[Facts]) -> None:
    """Those who live have committed the next round; the newcomer was in it, or has followed."""
    assert {(result["failure"], result["round"]) for result in results} == {("", 2)}
    contributors = {name for result in results if result["receipt"] for name in result["receipt"]["contributors"]}
    assert {"alice", "carol"} <= contributors <= {"alice", "carol", NEWCOMER}
    family.check()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_donor_falls_amid_a_chunk_and_the_others_give_the_rest_and_go_on(
    how: signal.Signals, maker: subprocess.Popen[str], tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with open_transfer(maker, tmp_path) as (family, links):
            others = strike(family, how)
            family.order(*others)
            for link in links.values():
                link.heal()
            newcomer = family.members[NEWCOMER]
            check_caught(family, links, await family.result(newcomer))
            family.order(newcomer)
            check_round(family, [await family.result(member) for member in (*others, newcomer)])

    run(scenario(), timeout=60)


def test_all_links_break_and_the_donors_go_on_and_what_has_come_is_not_fetched_again(
    maker: subprocess.Popen[str], tmp_path: Path
) -> None:
    """The state that it was about to get is one round old when it is there again; the others still give it."""

    async def scenario() -> None:
        async with open_transfer(maker, tmp_path) as (family, links):
            others = strike(family, signal.SIGKILL)
            results = await family.round(*others)
            for link in links.values():
                link.cut(Cut.RESET)
                link.heal()
            newcomer = family.members[NEWCOMER]
            check_caught(family, links, await family.result(newcomer))
            check_round(family, [*results, *await family.round(newcomer)])

    run(scenario(), timeout=60)
