from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distqat.averaging import slices, terms
from distqat.averaging.group import Rates
from distqat.averaging.phases import phase
from distqat.ids import PeerId
from distqat.sections import SyncSection
from distqat.wire import codecs
from tests.averaging.words import join

AUTO = SyncSection(codec="auto", budget=0.1)
LATER = phase(0, SyncSection(warmup_steps=0))
PLAIN = phase(0, SyncSection(warmup_steps=5))


def test_every_codec_of_the_settings_is_known_here_and_in_wire() -> None:
    sizes = []
    for name in terms.CODECS:
        SyncSection(codec=name)
        sizes.append(codecs.find(name).size(1 << 20, torch.float32))
    assert sizes == sorted(sizes, reverse=True)


def test_a_setting_is_a_setting() -> None:
    assert terms.wanted(SyncSection(codec="bf16"), 10**9, 1.0, 1.0) == "bf16"


@pytest.mark.parametrize(
    ("uplink", "seconds", "codec"),
    [(0.0, 100.0, "int8"), (1e9, 100.0, "int8"), (1.5e6, 100.0, "int4"), (1e6, 100.0, "int2"), (1.0, 1.0, "int2")],
)
def test_auto_takes_what_fits_into_its_share_of_the_time(uplink: float, seconds: float, codec: str) -> None:
    """Of 10 M elements about 20 MB, 11 MB or 6 MB leave, in a tenth of the time."""
    assert terms.wanted(AUTO, 10_000_000, uplink, seconds) == codec


def test_the_coarsest_that_is_asked_for_is_taken() -> None:
    joins = [replace(join("a"), codec="int8"), replace(join("b"), codec="int2"), replace(join("c"), codec="none")]
    assert terms.codec(joins, LATER) == "int2"
    assert terms.codec(joins, PLAIN) == "int8"
    assert terms.codec([replace(join("a"), codec="bf16")], PLAIN) == "bf16"


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e6)), min_size=1, max_size=9), st.sampled_from([0.0, 1.5]))
def test_nobody_is_longer_than_a_multiple_of_the_median(brought: list[tuple[int, float]], clip: float) -> None:
    joins = [replace(join(f"p{at}", samples=samples), norm=norm) for at, (samples, norm) in enumerate(brought)]
    factors = terms.factors(joins, clip)
    norms = {one.peer: one.norm for one in joins if one.samples}
    median = statistics.median(norms.values()) if norms else 0.0
    for peer, norm in norms.items():
        scaled = norm * factors.get(peer, 1.0)
        assert 0 < factors.get(peer, 1.0) <= 1
        if clip and median:
            assert scaled <= clip * median * (1 + 1e-9)
            assert scaled == pytest.approx(min(norm, clip * median))
        else:
            assert scaled == norm


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"norm": math.nan}, "norm nan"),
        ({"norm": -1.0}, "norm -1.0"),
        ({"rates": Rates(math.inf, 0.0)}, "inf and 0.0 bytes"),
        ({"codec": "gif"}, "codec 'gif'"),
    ],
)
def test_nonsense_has_a_name(changes: dict[str, object], fault: str) -> None:
    assert fault in terms.fault(replace(join("a"), **changes))  # type: ignore[arg-type]
    assert not terms.fault(join("a"))


def test_the_muted_count_no_samples_and_are_members() -> None:
    joins = [join("a", samples=3), join("b", samples=5)]
    group = terms.group("x", joins, LATER, 3.0, {PeerId("b")})
    assert [(member.peer, member.samples) for member in group.members] == [("a", 3), ("b", 0)]
    slices.check(group, joins[0])
    slices.check(group, joins[1])


def test_who_settles_exchanges_nothing() -> None:
    group = terms.settling("x", [join("a"), join("b")], "d")
    assert group.settles == "d"
    assert all(not member.elements and not member.samples for member in group.members)
