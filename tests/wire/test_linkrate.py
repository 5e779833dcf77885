"""What a sender can know of its link, on links that are known."""

from __future__ import annotations

import pytest

from distqat.wire.linkrate import LinkRate


class Link:
    """A link of so many bytes per second behind a buffer, into which frames go as they find room."""

    def __init__(self, rate: float, buffer: int, lump: int = 1) -> None:
        self.rate = rate
        self.buffer = buffer
        self.lump = lump  # Room is given back in pieces of this size.
        self.now = 0.0
        self.filled = 0.0
        self.seen = LinkRate()

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.filled = max(0.0, self.filled - seconds * self.rate)

    def send(self, size: int, copy: float = 1e-9) -> None:
        began = self.now
        if self.filled + size > self.buffer:
            self.pause(max(self.filled + size - self.buffer, self.lump) / self.rate)
        self.filled += size
        self.pause(size * copy)
        self.seen.sent(size, began, self.now)


@pytest.mark.parametrize(("rate", "size"), [(2.5e6, 64 << 10), (2.5e6, 1 << 20), (12.5e6, 64 << 10), (125e6, 1 << 20)])
@pytest.mark.parametrize("lump", [1, 2 << 20])
def test_a_link_that_is_kept_full_shows_its_rate(rate: float, size: int, lump: int) -> None:
    link = Link(rate, 4 << 20, lump)
    for _ in range((64 << 20) // size):
        link.send(size)
    assert link.seen.value == pytest.approx(rate, rel=0.2)


def test_what_disappears_into_a_buffer_says_nothing() -> None:
    link = Link(2.5e6, 4 << 20)
    for _ in range(100):
        link.send(1 << 20)
        link.pause(1.0)  # Long enough for the buffer to become empty again.
    assert link.seen.value == 0
    for _ in range(16):
        link.send(1 << 20)
    assert link.seen.value > 0
    for _ in range(65):
        link.pause(1.0)
        link.send(1 << 20)
    assert link.seen.value == 0  # Or zstd would stay on when a link has become fast.
    assert repr(link.seen) == "<LinkRate unknown>"


def test_small_messages_alone_say_nothing() -> None:
    seen = LinkRate()
    for index in range(50):
        seen.sent(100, index, index + 0.1)
    assert seen.value == 0


@pytest.mark.parametrize("size", [4 << 10, 30 << 10])
def test_a_busy_processor_that_holds_small_messages_back_is_no_slow_link(size: int) -> None:
    seen = LinkRate()
    for index in range(1000):
        seen.sent(size, index, index + 0.02)
    assert seen.value == 0


def test_small_messages_that_fill_a_link_show_its_rate() -> None:
    link = Link(2.5e6, 4 << 20)
    for _ in range(2000):
        link.send(8 << 10)
    assert link.seen.value == pytest.approx(2.5e6, rel=0.2)


def test_it_follows_a_link_that_changes() -> None:
    link = Link(100e6, 1 << 20)
    for _ in range(1000):
        link.send(1 << 20)
    assert link.seen.value == pytest.approx(100e6, rel=0.1)
    assert repr(link.seen).startswith("<LinkRate 1")
    link.rate = 5e6
    for _ in range(60):
        link.send(1 << 20)
    assert link.seen.value == pytest.approx(5e6, rel=0.2)


def test_pauses_of_the_sender_do_not_count() -> None:
    link = Link(10e6, 1 << 20)
    for _ in range(30):
        link.send(8 << 20)
        link.pause(2.0)
    assert link.seen.value == pytest.approx(10e6, rel=0.2)
