"""Rates and pacing on links that are known, in a world with a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from distqat.rpc.pacing import BURST, FAST, SHARE, Flow, Gauge, Pace, Pacer

LOOK = 0.25
NEW = Flow(0, 0, 0, 0.0)
TICK = 0.01


@dataclass
class Peer:
    """A connection to another host, into which a sender puts whatever the pacer lets out."""

    down: float = 1e12
    """Bytes per second that the far end's link takes."""
    wants: float = 0.0
    """Bytes that are still to be sent."""
    message: int = 1 << 20
    flow: Flow = NEW
    next: int = 0
    """Bytes of the message that waits for its turn,"""
    turn: float = 0.0
    """which is then."""
    reads: bool = True


@dataclass
class World:
    """A host with an uplink."""

    up: float
    peers: list[Peer] = field(default_factory=list)
    now: float = 0.0
    gauge: Gauge = field(default_factory=Gauge)
    pacer: Pacer = field(default_factory=Pacer)
    pace: Pace = field(default_factory=Pace)
    looked: float = 0.0

    def send(self, seconds: float) -> float:
        """Let time pass; bytes that got through per second."""
        before, end = sum(peer.flow.acked for peer in self.peers), self.now + seconds
        while self.now < end:
            for peer in self.peers:
                self._fill(peer)
            self._drain()
            self.now += TICK
            if self.now - self.looked >= LOOK:
                self._look()
        return (sum(peer.flow.acked for peer in self.peers) - before) / seconds

    def rest(self) -> None:
        """Between two rounds, when what is in the kernel by then leaves."""
        wants = [peer.wants for peer in self.peers]
        for peer in self.peers:
            peer.wants = 0.0
        self.send(8.0)
        for peer, count in zip(self.peers, wants, strict=True):
            peer.wants = count

    def _fill(self, peer: Peer) -> None:
        while peer.flow.unsent < 2 << 20:
            if not peer.next and peer.wants > 0:
                peer.next = min(peer.message, int(peer.wants))
                peer.wants -= peer.next
                peer.turn = self.now + self.pacer.take(peer.next, self.now)
            if not peer.next or self.now < peer.turn:
                return
            peer.flow = replace(peer.flow, unsent=peer.flow.unsent + peer.next)
            peer.next = 0

    def _drain(self) -> None:
        room = self.up * TICK
        waiting = [peer for peer in self.peers if peer.flow.unsent]
        for peer in sorted(waiting, key=lambda peer: peer.down):
            share = room / len(waiting)
            waiting = waiting[1:]
            if not peer.reads:
                peer.flow = replace(peer.flow, starved=peer.flow.starved + TICK)
                continue
            passed = int(min(peer.flow.unsent, peer.down * TICK, share))
            room -= passed
            peer.flow = replace(peer.flow, unsent=peer.flow.unsent - passed, acked=peer.flow.acked + passed)

    def _look(self) -> None:
        seconds, self.looked = self.now - self.looked, self.now
        receivers = sum(peer.wants > 0 for peer in self.peers)
        flows = {index: peer.flow for index, peer in enumerate(self.peers)}
        self.gauge.look(flows, self.now, receivers, is_receiving=False)
        has_waiting = self.pacer.has_waiting(self.now)
        self.pacer.rate = self.pace.rate(self.gauge.uplink, self.gauge.is_filled, has_waiting, seconds)


def many(count: int = 3, wants: float = 1e9, message: int = 1 << 18) -> list[Peer]:
    return [Peer(wants=wants, message=message) for _ in range(count)]


@pytest.mark.parametrize("up", [1.25e6, 12.5e6, 2.5e5])
@pytest.mark.parametrize("count", [1, 3])
def test_a_link_that_is_filled_is_known(up: float, count: int) -> None:
    world = World(up, many(count))
    world.send(3.0)
    assert world.gauge.uplink == pytest.approx(up, rel=0.05)
    assert repr(world.gauge).startswith(f"<Gauge up {world.gauge.uplink / 1e6:.1f}, down")


def test_bulk_is_then_paced_to_a_little_less_and_queues_are_short() -> None:
    world = World(1.25e6, many(3, message=1 << 16))
    world.send(10.0)
    world.rest()
    rate = world.send(2.0)
    assert SHARE * 1.25e6 * 0.95 < rate < 0.97 * 1.25e6
    assert sum(peer.flow.unsent for peer in world.peers) <= 4 << 16


def test_nothing_is_known_of_a_link_that_nothing_fills() -> None:
    world = World(1e9, [Peer(wants=1e9, message=1 << 16)])
    world.send(5.0)
    assert world.gauge.uplink == 0.0
    assert world.pacer.rate == 0.0
    assert world.pacer.take(1 << 30, world.now) == 0.0


def test_a_fast_link_is_not_paced() -> None:
    world = World(4 * FAST, many(3, wants=1e12, message=8 << 20))
    world.send(5.0)
    assert world.gauge.uplink == pytest.approx(4 * FAST, rel=0.1)
    assert world.pacer.rate == 0.0


def test_a_receiver_that_does_not_read_says_nothing_of_the_link() -> None:
    world = World(12.5e6, [Peer(wants=1e9, reads=False)])
    world.send(5.0)
    assert world.gauge.uplink == 0.0


def test_a_slow_receiver_holds_the_others_up_for_seconds_only() -> None:
    """While it is alone, its link looks like ours; when others pass without waiting, that is seen to be wrong."""
    slow = Peer(down=0.25e6, wants=1e9)
    world = World(20e6, [slow])
    world.send(10.0)
    assert world.pacer.rate < 0.3e6
    world.peers.append(Peer(wants=1e9, message=1 << 16))
    world.send(20.0)
    assert world.send(2.0) > 10e6


def test_a_link_that_became_faster_is_found_out() -> None:
    world = World(1.25e6, many(2, message=1 << 16))
    world.send(10.0)
    world.up = 12.5e6
    world.send(30.0)
    assert world.send(3.0) > 0.7 * 12.5e6


def test_a_link_that_became_slower_is_found_out() -> None:
    world = World(12.5e6, many(2))
    world.send(10.0)
    world.up = 1.25e6
    world.send(45.0)
    assert world.gauge.uplink == pytest.approx(1.25e6, rel=0.1)


def test_looking_for_a_faster_link_fills_a_slow_one_seldom() -> None:
    world = World(1.25e6, many(2, message=1 << 15))
    world.send(10.0)
    world.rest()
    filled = 0
    for _ in range(200):
        world.send(LOOK)
        filled += world.gauge.is_filled
    assert filled < 60
    assert world.gauge.uplink == pytest.approx(1.25e6, rel=0.1)


def test_a_gap_in_the_traffic_is_no_slow_link() -> None:
    gauge, flow = Gauge(), NEW
    for index in range(40):
        # Three quarters of a second of 2 MB/s, then half a second of nothing.
        place = index % 5
        flow = Flow(flow.acked + (500_000 if 1 <= place <= 3 else 0), 0, 1 if place <= 3 else 0, 0.0)
        gauge.look({1: flow}, index * LOOK, 1, is_receiving=False)
    assert gauge.uplink == pytest.approx(2e6)


def test_what_a_shaper_lets_through_at_once_does_not_count() -> None:
    gauge, flow = Gauge(), replace(NEW, unsent=1)
    for index in range(8):
        gauge.look({1: flow}, index * LOOK, 1, is_receiving=False)
        flow = replace(flow, acked=flow.acked + (2_000_000 if index == 0 else 250_000))
    assert gauge.uplink == pytest.approx(1e6)


def test_a_downlink_is_what_came_in_and_no_less_than_the_uplink() -> None:
    gauge, flow = Gauge(), NEW
    for index in range(8):
        gauge.look({1: flow}, index * LOOK, 1, is_receiving=True)
        flow = replace(flow, received=flow.received + 500_000)
    assert gauge.downlink == pytest.approx(2e6)
    assert gauge.uplink == 0.0
    for index in range(8, 16):
        gauge.look({1: flow}, index * LOOK, 1, is_receiving=False)
        flow = replace(flow, acked=flow.acked + 1_000_000, unsent=1)
    assert gauge.downlink == pytest.approx(gauge.uplink) == pytest.approx(4e6)


def test_connections_that_come_and_go_do_not_count() -> None:
    gauge = Gauge()
    for index in range(20):
        gauge.look({index: Flow(10**9, 10**9, 1, 0.0)}, index * LOOK, 1, is_receiving=True)
    assert (gauge.uplink, gauge.downlink) == (0.0, 0.0)


def test_who_comes_first_goes_first_and_a_pause_saves_little() -> None:
    pacer = Pacer()
    pacer.rate = 1e6
    assert pacer.take(500_000, 10.0) == 0.0
    assert pacer.take(500_000, 10.0) == pytest.approx(0.5 - BURST)
    assert pacer.take(500_000, 10.1) == pytest.approx(0.9 - BURST)
    assert pacer.has_waiting(10.1)
    assert not pacer.has_waiting(100.0)
    assert pacer.take(1_000_000, 100.0) == 0.0
    assert pacer.take(1, 100.0) == pytest.approx(1.0 - BURST)


def test_hops_go_before_bulk_which_always_gets_something() -> None:
    pacer = Pacer()
    pacer.rate = 1e6
    now, left, bulk = 0.0, 0.0, 0
    while now < 20.0:
        pacer.passed(10_000, now)  # As much as the link carries.
        if now >= left:
            left = now + pacer.take(100_000, now)
            bulk += 100_000
        now += 0.01
    assert bulk / 20.0 == pytest.approx(0.2e6, rel=0.2)


def test_hops_cost_nothing_where_nothing_is_known() -> None:
    pacer = Pacer()
    pacer.passed(1 << 30, 0.0)
    assert pacer.take(1, 0.0) == 0.0


def test_a_slow_receiver_at_the_end_of_a_round_is_not_the_link() -> None:
    """The others have all they get, and it alone is still waited for."""
    world = World(20e6, [Peer(down=0.2e6), Peer(), Peer()])
    for _ in range(6):
        for peer in world.peers:
            peer.wants += 2e6 if peer.down < 1e6 else 20e6
        world.send(12.0)
        assert world.pacer.rate == 0.0 or world.pacer.rate > 10e6
        world.peers[0].wants = 0.0
        world.send(10.0)
