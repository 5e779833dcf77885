"""Keys of records."""

from __future__ import annotations

from random import Random

from distqat.discovery import keys
from distqat.discovery.signing import SigningKey
from distqat.ids import RunId

RUN = RunId("digits", "0123456789abcdef")


def test_keys_of_a_run_name_it_with_its_digest() -> None:
    assert keys.config(RUN) == "run/digits@01234567/config"
    assert keys.experts(RUN, 2) == "run/digits@01234567/experts/2"
    assert keys.trainers(RUN) == "run/digits@01234567/trainers"
    assert keys.clients(RUN) == "run/digits@01234567/clients"
    assert keys.clients(RUN) != keys.clients(RunId("digits", "fedcba9876543210"))


def test_every_key_has_its_place() -> None:
    assert len(keys.key_id(keys.PEERS)) == keys.KEY_BYTES
    assert keys.key_id(keys.PEERS) != keys.key_id(keys.RUNS)


def test_experts_are_spread_over_all_shards() -> None:
    random = Random(3)
    shards = {keys.expert_shard(SigningKey.generate(random).peer) for _ in range(40)}
    assert shards == set(range(keys.EXPERT_SHARDS))
