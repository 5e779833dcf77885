"""The bytes of each codec. Peers of different versions read each other's: bytes that change need a new name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distqat.wire import codecs

GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "codecs.json").read_text())
"""`values` are fp32, normal ones and corner cases; for each codec the bytes that stand for them. All in hexadecimal."""

VALUES = torch.frombuffer(bytearray.fromhex(GOLDEN["values"]), dtype=torch.float32)
ERRORS = {"bf16": 2**-8, "fp16": 2**-11, "int8": 0.5001 / 127, "int4": 0.5001 / 7, "int2": 1.0}


def test_every_codec_is_here() -> None:
    assert set(GOLDEN) - {"values"} == set(codecs.names()) - {"none"}


def test_none_is_the_memory_itself() -> None:
    assert bytes(codecs.find("none").encode(VALUES)).hex() == GOLDEN["values"]


@pytest.mark.parametrize("name", ERRORS)
def test_the_bytes_have_not_changed(name: str) -> None:
    assert bytes(codecs.find(name).encode(VALUES)).hex() == GOLDEN[name]


@pytest.mark.parametrize("name", ERRORS)
def test_old_bytes_still_mean_the_same(name: str) -> None:
    decoded = codecs.find(name).decode(memoryview(bytes.fromhex(GOLDEN[name])), torch.float32, (len(VALUES),))
    normal, allowed = slice(0, 256), ERRORS[name] * float(VALUES[:256].abs().max())
    assert float((decoded[normal] - VALUES[normal]).abs().max()) <= allowed
    assert float(decoded[-2]) == pytest.approx(-65504, rel=5e-3)
    # Of four levels none is zero.
    assert name == "int2" or not decoded[-67:-3].any()
