"""What a status says of times."""

from __future__ import annotations

from distqat.roles.orders import messages as orders
from distqat.roles.status import ExpertStatus, LinkStatus, Receipt, StepTimes
from distqat.timeline import Timelines
from distqat.times import DOWN, UP, LinkState


def test_times_are_those_of_the_last_steps() -> None:
    now = [0.0]
    timeline = Timelines(lambda: now[0], lambda *line: None).of("p", "mlp/0", 0)
    assert StepTimes.of(timeline) is None
    for step in (1, 2):
        timeline.add("forward", now[0], now[0] + 1.0, step)
        timeline.add("encode", now[0], now[0] + 0.5, step, 0, UP, 100, 400)
        timeline.add("send", now[0], now[0] + 0.25, step, 0, UP, 100)
        now[0] += 3.0
        timeline.committed(step, {UP: LinkState(1e6 * step, step == 2)})
    times = StepTimes.of(timeline)
    assert times == StepTimes(6.0, 2.0, 0.0, 4.0, 1.0, 0.5, (LinkStatus(UP, 200, 800, 2e6, True),))
    assert DOWN not in timeline.links


def test_times_cross_the_wire() -> None:
    times = StepTimes(6.0, 2.0, 0.5, 3.5, 1.0, 0.5, (LinkStatus(UP, 200, 800, 2e6, True),))
    for status in (ExpertStatus(seated=True, times=times), ExpertStatus()):
        reply = orders.AssignReply(status)
        assert orders.decode(orders.AssignReply, orders.encode(reply)) == reply


def test_a_receipt_crosses_the_wire() -> None:
    receipt = Receipt(
        7, ("a", "b"), 640, 1500, 0.25, "29902a2f", ("c",), (0, 2), "int8", 0.8125, ("a",), ("d: it holds NaN",)
    )
    reply = orders.AssignReply(ExpertStatus(seated=True, receipts=(receipt,), beside=True, replayed=3))
    assert orders.decode(orders.AssignReply, orders.encode(reply)) == reply
