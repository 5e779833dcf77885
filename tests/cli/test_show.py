"""A swarm's status, for people and for programs."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

from rich.console import Console

from distqat.cli import show
from distqat.ids import Endpoint, PeerId, RunId, Seat, StageIndex
from distqat.roles.status import (
    ExpertStatus,
    Loss,
    PeerStatus,
    PipelineStatus,
    Receipt,
    RoleStatus,
    RunStatus,
    SwarmStatus,
    Traffic,
)

RUN = RunId("digits", "0123456789abcdef" * 2)
ALICE, BOB = "a" * 40, "b" * 40
SEAT = Seat(PeerId(BOB), Endpoint("10.0.0.2", 7000), StageIndex(0))
LINE = PipelineStatus("p1-00ff", 3, (SEAT,), 12, 0.5, 80.0, "training", "training", losses=(3.0, 2.0, 1.0))
CLIENT = PeerStatus(
    ALICE,
    Endpoint("10.0.0.1", 7000),
    "0.1.0",
    RUN,
    (
        RoleStatus("client", "training", "1 pipeline", run=RunStatus(320, 640, 32, ("mlp/0",), pipelines=(LINE,))),
        RoleStatus("trainer", "training", "driving 1 pipelines", pipelines=(LINE,)),
    ),
    (Traffic("pipeline", 1_500_000, 10),),
)
EXPERT = PeerStatus(
    BOB,
    Endpoint("10.0.0.2", 7000),
    "0.1.0",
    RUN,
    (
        RoleStatus(
            "expert",
            "training",
            "training mlp/0",
            ExpertStatus(True, 0, "mlp/0", "p1-00ff", 12, 2, "29902a2f", receipts=(Receipt(1, (BOB,), 32, 100, 0.1),)),
        ),
    ),
)
SWARM = SwarmStatus((CLIENT, EXPERT))


def test_a_swarm_that_trains_is_healthy() -> None:
    assert show.is_healthy(SWARM)


def test_what_makes_a_swarm_unhealthy() -> None:
    assert not show.is_healthy(SwarmStatus((EXPERT,)))
    assert not show.is_healthy(SwarmStatus((CLIENT, replace(EXPERT, reachable=False))))
    broken = replace(
        CLIENT, roles=(CLIENT.roles[0], replace(CLIENT.roles[1], pipelines=(replace(LINE, phase="broken"),)))
    )
    assert not show.is_healthy(SwarmStatus((broken, EXPERT)))
    idle = replace(CLIENT, roles=(RoleStatus("client", run=RunStatus(budget=640)),))
    assert not show.is_healthy(SwarmStatus((idle, EXPERT)))
    failed = replace(EXPERT, roles=(replace(EXPERT.roles[0], phase="failed"),))
    assert not show.is_healthy(SwarmStatus((CLIENT, failed)))
    standby = replace(CLIENT, roles=(RoleStatus("client", run=RunStatus()), CLIENT.roles[1]))
    assert not show.is_healthy(SwarmStatus((standby, EXPERT)))


def test_json_is_complete_and_has_no_nan() -> None:
    tree = json.loads(show.as_json(SWARM), parse_constant=lambda text: (_ for _ in ()).throw(AssertionError(text)))
    assert tree["healthy"] is True
    assert tree["run"]["committed"] == 320
    assert tree["pipelines"][0]["evaluation"] is None
    assert tree["peers"][1]["roles"][0]["expert"]["receipts"][0]["contributors"] == [BOB]


def test_people_see_who_does_what_and_why() -> None:
    lost = replace(CLIENT.roles[0].run or RunStatus(), losses=(Loss("c" * 40, "UnreachableError", "refused"),))
    swarm = SwarmStatus((replace(CLIENT, roles=(replace(CLIENT.roles[0], run=lost), CLIENT.roles[1])), EXPERT))
    out = io.StringIO()
    Console(file=out, width=240).print(show.render(swarm))
    text = out.getvalue()
    for words in ("digits@01234567", "healthy", "320/640", "p1-00ff", "mlp/0", "29902a2f", "1.5 MB", "training mlp/0"):
        assert words in text
    assert "lost cccccccc: UnreachableError: refused" in text


def test_without_a_client_it_is_said() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(show.render(SwarmStatus((EXPERT,))))
    assert "no client in this swarm" in out.getvalue()


def test_sparkline() -> None:
    assert show.sparkline(()) == ""
    assert show.sparkline((math.nan,)) == ""
    assert show.sparkline((1.0, 1.0)) == "▁▁"
    assert show.sparkline((0.0, 1.0, math.nan)) == "▁█"
    assert len(show.sparkline(tuple(range(100)), width=10)) == 10


def test_size() -> None:
    assert [show.size(n) for n in (0, 999, 1500, 2_000_000, 3e9, 4e12)] == [
        "0 B", "999 B", "1.5 kB", "2.0 MB", "3.0 GB", "4.0 TB",
    ]  # fmt: skip
