"""What a receiver can know of its link, on links that are known."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distqat.wire.linkrate import FAST, LinkRate

KIB = 1 << 10


@dataclass
class Link:
    """A link of so many bytes per second, whose two ends have clocks of their own and processors that may be busy."""

    rate: float
    latency: float = 0.01
    skew: float = 1234.5
    """The receiver's clock is so far ahead,"""
    drift: float = 0.0
    """and so much faster."""
    busy: float = 0.0
    """Seconds that a message may have to wait for a processor at either end, at most."""
    bucket: int = 0
    """Bytes that go at once after a pause."""
    now: float = 0.0
    free: float = 0.0
    """When the last byte was through."""
    came: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(7))
    seen: LinkRate = field(default_factory=LinkRate)

    def send(self, size: int) -> None:
        """Into a buffer that takes it at once."""
        sent, ready = self.now, self.now + self._wait()
        tokens = min(self.bucket, max(0.0, (ready - self.free) * self.rate))
        self.free = max(self.free, ready) + max(0.0, size - tokens) / self.rate
        # A receiver handles one message after the other.
        self.came = max(self.came, self.free + self.latency) + self._wait()
        self.seen.came(size, sent, self.skew + self.came * (1 + self.drift))

    def step(self, count: int, size: int, gap: float = 0.0, pause: float = 1.0) -> None:
        """So many messages, and then a pause until all are through, with a ping."""
        for _ in range(count):
            self.send(size)
            self.now += gap
        self.now = max(self.now, self.free) + pause
        self.send(30)
        self.now += pause

    def _wait(self) -> float:
        return self.random.uniform(0.0, self.busy) if self.busy else 0.0


def opened(rate: float, **more: float) -> Link:
    """A link on which a ping has gone first, as on a route that opens."""
    link = Link(rate, **more)  # type: ignore[arg-type]
    link.send(30)
    link.now += 0.05
    return link


@pytest.mark.parametrize(("rate", "size"), [(2e6, 256 * KIB), (2.5e6, 64 * KIB), (12.5e6, 1024 * KIB), (5e5, 4 << 20)])
def test_a_link_shows_its_rate_though_buffers_take_everything(rate: float, size: int) -> None:
    link = opened(rate)
    link.step(8, size)
    link.step(8, size)
    link.step(8, size)
    assert link.seen.value == pytest.approx(rate, rel=0.05)
    assert repr(link.seen) == f"<LinkRate {link.seen.value / 1e6:.1f} MB/s>"


def test_a_slow_link_is_known_in_the_second_step() -> None:
    link = opened(2e6)
    link.step(8, 256 * KIB, pause=0.1)
    for _ in range(2):
        link.send(256 * KIB)
    assert link.seen.value == pytest.approx(2e6, rel=0.05)


def test_single_messages_with_pauses_show_it_too() -> None:
    link = opened(2e6)
    for _ in range(3):
        link.step(1, 256 * KIB)
    assert link.seen.value == pytest.approx(2e6, rel=0.02)


def test_a_link_that_is_never_idle_shows_it_too() -> None:
    link = opened(2e6)
    for index in range(200):
        link.send(256 * KIB)
        if index > 3:
            link.now = link.free - 3 * 256 * KIB / link.rate  # Three are always under way.
    assert link.seen.value == pytest.approx(2e6, rel=0.05)


def test_nothing_is_said_before_enough_is_known() -> None:
    link = Link(2e6)
    assert link.seen.value == 0.0
    link.step(1, 256 * KIB)
    link.step(1, 256 * KIB)
    assert link.seen.value == 0.0
    assert repr(link.seen) == "<LinkRate unknown>"


def test_a_first_message_of_a_tensor_is_no_measure_of_the_lag() -> None:
    link = Link(2e6)
    for _ in range(12):
        link.step(1, 256 * KIB)
    assert link.seen.value == pytest.approx(2e6, rel=0.05)


def test_small_messages_alone_say_nothing() -> None:
    link = opened(1e4)
    for _ in range(100):
        link.step(3, 4 * KIB)
    assert link.seen.value == 0.0


def test_a_fast_link_is_not_told_from_a_faster_one() -> None:
    for rate in (2 * FAST, 10 * FAST):
        link = opened(rate)
        for _ in range(8):
            link.step(8, 256 * KIB)
        assert link.seen.value == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_busy_processors_do_not_make_a_fast_link_slow(seed: int) -> None:
    """Each message waits for up to 20 ms at either end, which is 5 to 200 times what the link takes."""
    link = opened(1e9, busy=0.02)
    link.random.seed(seed)
    rates = []
    for _ in range(60):
        link.step(4, 1024 * KIB, gap=0.05)
        rates.append(link.seen.value)
    # A look at a bad moment is possible; what turns zstd on for good is not.
    assert sum(0 < rate < 20e6 for rate in rates) == 0
    assert sum(rate > 0 for rate in rates) < 30


@pytest.mark.parametrize("seed", range(8))
def test_busy_processors_do_not_hide_a_slow_link(seed: int) -> None:
    link = opened(2e6, busy=0.03)
    link.random.seed(seed)
    for _ in range(10):
        link.step(8, 256 * KIB)
    assert 0.7 * 2e6 < link.seen.value < 1.5 * 2e6


def test_what_a_token_bucket_lets_through_at_once_does_not_mislead_by_much() -> None:
    link = opened(1.25e6, bucket=128 * KIB)
    for _ in range(4):
        link.step(8, 256 * KIB)
    assert 1.25e6 <= link.seen.value < 1.3 * 1.25e6


@pytest.mark.parametrize("drift", [5e-5, -5e-5])
def test_clocks_may_run_apart(drift: float) -> None:
    link = opened(2e6, drift=drift)
    for _ in range(200):
        link.step(8, 256 * KIB, pause=5.0)
        link.now += 30.0
    assert link.seen.value == pytest.approx(2e6, rel=0.05)
    fast = opened(1e9, drift=drift)
    for _ in range(200):
        fast.step(8, 256 * KIB, pause=5.0)
        fast.now += 30.0
    assert fast.seen.value == 0.0


def test_it_follows_a_link_that_changes_both_ways() -> None:
    link = opened(1e9)
    for _ in range(20):
        link.step(4, 1024 * KIB)
    assert link.seen.value == 0.0
    link.rate = 2e6
    for _ in range(3):
        link.step(4, 1024 * KIB)
    assert link.seen.value == pytest.approx(2e6, rel=0.1)
    link.rate = 10e6
    link.step(4, 1024 * KIB)
    assert link.seen.value == pytest.approx(10e6, rel=0.1)
    link.rate = 1e9
    link.step(1, 1024 * KIB)
    assert link.seen.value == 0.0


@given(
    st.floats(1e5, 9e7),
    st.lists(st.tuples(st.integers(1, 6), st.floats(0.02, 2.0), st.floats(0.0, 0.3)), min_size=8, max_size=20),
    st.floats(0.0, 0.2),
)
def test_without_noise_it_is_exact(rate: float, steps: list[tuple[int, float, float]], latency: float) -> None:
    link = opened(rate, latency=latency)
    for count, seconds, gap in steps:
        link.step(count, max(70_000, round(seconds * rate)), gap)
    assert link.seen.value == pytest.approx(rate, rel=0.05)
