"""A swarm's status, for people and for programs."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

from rich.console import Console

from distqat.cli import show
from distqat.ids import Endpoint, PeerId, RunId, Seat, StageIndex
from distqat.roles.checkpoint.words import Checkpoint, CheckpointStatus
from distqat.roles.status import (
    ExpertStatus,
    LinkStatus,
    Loss,
    PeerStatus,
    PipelineStatus,
    Receipt,
    RoleStatus,
    RunStatus,
    StepTimes,
    SwarmStatus,
    Traffic,
)

RUN = RunId("digits", "0123456789abcdef" * 2)
ALICE, BOB = "a" * 40, "b" * 40
SEAT = Seat(PeerId(BOB), Endpoint("10.0.0.2", 7000), StageIndex(0))
LINE = PipelineStatus(
    "p1-00ff", 3, (SEAT,), 12, 0.5, 80.0, "training", "training", losses=(3.0, 2.0, 1.0), microbatches=5,
    microbatch_seconds=0.0123,
)  # fmt: skip
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
    assert tree["pipelines"][0]["microbatches"] == 5
    assert tree["peers"][1]["roles"][0]["expert"]["receipts"][0]["contributors"] == [BOB]


def test_samples_that_were_skipped_are_seen() -> None:
    for skipped in (0, 32):
        run = RunStatus(320, 640, 32, ("mlp/0",), pipelines=(LINE,), skipped=skipped)
        swarm = SwarmStatus((replace(CLIENT, roles=(replace(CLIENT.roles[0], run=run), CLIENT.roles[1])), EXPERT))
        out = io.StringIO()
        Console(file=out, width=240).print(show.render(swarm))
        assert ("32 samples skipped" in out.getvalue()) is bool(skipped)


def test_people_see_who_does_what_and_why() -> None:
    lost = replace(CLIENT.roles[0].run or RunStatus(), losses=(Loss("c" * 40, "UnreachableError", "refused"),))
    swarm = SwarmStatus((replace(CLIENT, roles=(replace(CLIENT.roles[0], run=lost), CLIENT.roles[1])), EXPERT))
    out = io.StringIO()
    Console(file=out, width=240).print(show.render(swarm))
    text = out.getvalue()
    for words in ("digits@01234567", "healthy", "320/640", "p1-00ff", "mlp/0", "29902a2f", "1.5 MB", "5 x 12.3 ms"):
        assert words in text
    assert "lost cccccccc: UnreachableError: refused" in text


def test_an_expert_shows_where_its_time_goes() -> None:
    links = (LinkStatus("down", 1000, 4000, 2e6, True), LinkStatus("up", 1000, 4000))
    times = StepTimes(seconds=4.0, compute=2.4, round=0.4, wait=1.2, codec=0.2, wire=0.8, links=links)
    role = EXPERT.roles[0]
    assert role.expert is not None
    busy = replace(EXPERT, roles=(replace(role, expert=replace(role.expert, times=times)),))
    out = io.StringIO()
    Console(file=out, width=240).print(show.render(SwarmStatus((CLIENT, busy))))
    (row,) = [line for line in out.getvalue().splitlines() if "zstd" in line]
    words = [part.strip() for part in row.split("  ") if part.strip()]
    assert words == ["bbbbbbbb (mlp/0)", "60%", "10%", "30%", "5%", "20%", "2.0 MB/s 4.0x zstd", "? 4.0x"]
    tree = json.loads(show.as_json(SwarmStatus((CLIENT, busy))))
    told = tree["peers"][1]["roles"][0]["expert"]["times"]
    assert (told["wait"], told["links"][0]["compressed"]) == (1.2, True)


def test_a_pace_that_is_not_measured_is_not_shown() -> None:
    def shown(line: PipelineStatus) -> str:
        role = replace(CLIENT.roles[1], pipelines=(line,))
        out = io.StringIO()
        Console(file=out, width=240).print(show.render(SwarmStatus((replace(CLIENT, roles=(CLIENT.roles[0], role)),))))
        return next(row for row in out.getvalue().splitlines() if "p1-00ff" in row)

    assert " 5 " in shown(replace(LINE, microbatch_seconds=0.0))
    assert " ms" not in shown(replace(LINE, microbatch_seconds=0.0))
    assert " 0 " not in shown(replace(LINE, microbatches=0, microbatch_seconds=0.0))


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


def test_an_expert_shows_its_last_round_and_what_went_wrong_in_it() -> None:
    receipt = Receipt(
        7, (BOB, ALICE), 640, 1_500_000, 0.25, "29902a2f00", ("c" * 40,), (0, 1, 2, 5), "int8", 0.8125, (ALICE,),
        ("dddddddd: it holds NaN",),
    )  # fmt: skip
    role = EXPERT.roles[0]
    assert role.expert is not None
    facts = replace(role.expert, receipts=(Receipt(6), receipt), beside=True, replayed=3)
    swarm = SwarmStatus((CLIENT, replace(EXPERT, roles=(replace(role, expert=facts),))))
    out = io.StringIO()
    Console(file=out, width=300).print(show.render(swarm))
    (row,) = [line for line in out.getvalue().splitlines() if "int8" in line]
    words = [part.strip() for part in row.split("  ") if part.strip()]
    remarks = "lost cccccccc; clipped aaaaaaaa; refused dddddddd: it holds NaN; replayed 3 rounds so far"
    assert words == [
        "bbbbbbbb (mlp/0)", "7 of 0-2 5", "2", "1.5 MB", "int8", "0.812", "0.25", "29902a2f",
        f"{remarks}; a round beside steps",
    ]  # fmt: skip
    told = json.loads(show.as_json(swarm))["peers"][1]["roles"][0]["expert"]
    assert (told["receipts"][1]["bits"], told["receipts"][1]["refused"]) == (0.8125, ["dddddddd: it holds NaN"])
    assert (told["beside"], told["replayed"]) == (True, 3)


def test_numbers_in_runs() -> None:
    assert show.spans(()) == ""
    assert show.spans((3,)) == "3"
    assert show.spans((0, 1, 2, 5, 7, 8)) == "0-2 5 7-8"


def test_checkpoints_are_shown_with_their_age_and_what_went_wrong() -> None:
    held = CheckpointStatus((Checkpoint(1, 120, "d"), Checkpoint(1, 110, "c")), 34.2)
    full = CheckpointStatus(fault="checkpoint of round 9 failed: no space left on device; there is none yet")
    peers = tuple(
        replace(EXPERT, peer=name * 40, roles=(replace(EXPERT.roles[0], role=role, checkpoints=checkpoints),))
        for name, role, checkpoints in (("b", "expert", held), ("c", "mirror", full))
    )
    out = io.StringIO()
    Console(file=out, width=240).print(show.render(SwarmStatus((CLIENT, *peers))))
    lines = out.getvalue().splitlines()
    assert ["bbbbbbbb", "expert", "1", "120", "34", "s", "ago", "2"] in [line.split() for line in lines]
    assert any("cccccccc" in line and "never" in line and "no space left on device" in line for line in lines)
    peer = json.loads(show.as_json(SwarmStatus((CLIENT, *peers))))["peers"][1]
    assert peer["roles"][0]["checkpoints"]["checkpoints"][0]["round"] == 120
    assert peer["roles"][0]["checkpoints"]["age"] == 34.2
