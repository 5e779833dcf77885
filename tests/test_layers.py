"""The house stands: imports point down, each thing is known where it belongs, and pure files stay pure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from tests import house
from tests.house import Module, Rule

PURE = (
    "averaging/blame.py",
    "averaging/company.py",
    "averaging/contribution.py",
    "averaging/discipline.py",
    "averaging/doubts.py",
    "averaging/events.py",
    "averaging/feedback.py",
    "averaging/form.py",
    "averaging/group.py",
    "averaging/guests.py",
    "averaging/kept.py",
    "averaging/leader.py",
    "averaging/member.py",
    "averaging/merging.py",
    "averaging/outer.py",
    "averaging/phases.py",
    "averaging/quorum.py",
    "averaging/reduce.py",
    "averaging/rendezvous.py",
    "averaging/round.py",
    "averaging/slices.py",
    "averaging/spans.py",
    "averaging/state/haul.py",
    "averaging/state/snapshot.py",
    "averaging/terms.py",
    "averaging/vote.py",
    "averaging/waits.py",
    "averaging/way.py",
    "cli/chaos/card.py",
    "cli/chaos/schedule.py",
    "cli/chaos/watch.py",
    "data/intervals.py",
    "data/known_steps.py",
    "data/claims.py",
    "data/ledger.py",
    "data/metrics.py",
    "data/sampler.py",
    "data/server/layout.py",
    "data/server/ring.py",
    "data/steplog.py",
    "discovery/keys.py",
    "discovery/records.py",
    "discovery/signing.py",
    "discovery/store.py",
    "discovery/view.py",
    "events.py",
    "model/agreement.py",
    "model/boundary.py",
    "model/checks.py",
    "model/fragments.py",
    "model/partition.py",
    "model/quant/grid.py",
    "model/quant/rules.py",
    "model/quant/slices.py",
    "model/rates.py",
    "model/shapes.py",
    "model/standstill.py",
    "model/steps.py",
    "model/terms.py",
    "pipeline/hop_codecs.py",
    "pipeline/pace.py",
    "pipeline/route.py",
    "pipeline/schedule.py",
    "pipeline/split.py",
    "pipeline/standing.py",
    "pipeline/tally.py",
    "pipeline/words.py",
    "roles/batches.py",
    "roles/epochs.py",
    "roles/faults.py",
    "roles/checkpoint/cadence.py",
    "roles/checkpoint/choice.py",
    "roles/checkpoint/words.py",
    "roles/leases.py",
    "roles/orders/order.py",
    "roles/outlook.py",
    "roles/plan/actions.py",
    "roles/plan/follow.py",
    "roles/plan/mend.py",
    "roles/plan/outcome.py",
    "roles/plan/rules.py",
    "roles/plan/stock.py",
    "roles/plan/view.py",
    "roles/plan/words.py",
    "roles/refusals.py",
    "roles/status.py",
    "rpc/cables.py",
    "rpc/pacing.py",
    "timeline.py",
    "times.py",
    "wire/compression.py",
    "wire/linkrate.py",
    "wire/payload.py",
)
"""Files that decide and do nothing else: the swarm can be simulated because they are pure."""

STARTS_WITHOUT_TORCH = (
    *house.WITHOUT_TORCH,
    *(
        f"data/{name}"
        for name in (
            "client.py",
            "ledger.py",
            "messages.py",
            "metrics.py",
            "reading.py",
            "sampler.py",
            "server/",
            "service.py",
            "sources/",
        )
    ),
)

MODULES = {module.path: module for module in house.modules()}


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    faults = [f"{module.path}:{fault}" for module in MODULES.values() for fault in rule(module)]
    assert not faults, "\n".join([rule.__doc__ or "", *faults])


@pytest.mark.parametrize("path", PURE)
def test_pure_files_are_pure(path: str) -> None:
    assert path in MODULES, f"{path} is gone; every room has its pure part"
    assert not house.is_pure(MODULES[path])


def test_files_that_say_they_are_pure_are_watched() -> None:
    claimed = {path for path, module in MODULES.items() if "Pure" in (house.docstring(module).split("\n\n")[0])}
    assert not claimed - set(PURE)


def test_every_module_is_in_a_room() -> None:
    rooms = {module.room for module in MODULES.values()} - {"__init__"}
    assert rooms == set(house.LAYERS)


def test_every_module_says_what_it_is() -> None:
    assert not [path for path, module in MODULES.items() if not house.docstring(module)]


def heavy_imports(names: list[str]) -> str:
    """Which of the modules, imported one after the other, is the first to bring a heavy library along."""
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'sklearn', 'scipy', 'transformers', 'wandb'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{name} imports {heavy}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stderr


def test_the_control_plane_starts_without_torch() -> None:
    names = [module.name for path, module in MODULES.items() if path.startswith(STARTS_WITHOUT_TORCH)]
    assert len(names) > 30
    assert not heavy_imports(names)


def test_a_module_that_brings_torch_along_is_caught() -> None:
    assert "distqat.data.tasks imports {'torch'}" in heavy_imports(["distqat.data.ledger", "distqat.data.tasks"])


COUNTER_EXAMPLES: Mapping[Rule, list[tuple[str, str]]] = {
    house.import_direction: [
        ("rpc/x.py", "from distqat.pipeline import hop"),
        ("pipeline/x.py", "import distqat.averaging.outer"),
        ("rpc/x.py", "def f():\n    from distqat.model import stage"),
        ("model/x.py", "from distqat.data.tasks import find_task"),
        ("pipeline/x.py", "from distqat import roles"),
        ("averaging/x.py", "from ..pipeline import hop"),
        ("averaging/__init__.py", "from ..pipeline import hop"),
        ("data/sources/x.py", "from ...roles import plan"),
        ("errors.py", "from distqat.wire import frames"),
        ("shed/x.py", "from distqat.wire import frames"),
        ("wire/x.py", "from distqat.shed import tool"),
        ("__init__.py", "from distqat.config import load"),
    ],
    house.grpc_only_in_rpc: [
        ("pipeline/x.py", "import grpc"),
        ("peer/x.py", "from grpc.aio import server"),
        ("peer/x.py", "from grpc_health.v1 import health"),
    ],
    house.pb_only_in_messages: [
        ("pipeline/x.py", "from distqat.pb import pipeline_pb2"),
        ("roles/plan/rules.py", "from distqat import pb"),
        ("data/my_messages.py", "from distqat.pb.data_pb2 import ClaimRequest"),
    ],
    house.no_torch_in_the_control_plane: [
        ("cli/x.py", "import torch"),
        ("roles/client.py", "def f():\n    from torch import nn"),
        ("discovery/x.py", "import torch.nn.functional as F"),
    ],
    house.no_bare_tasks: [
        ("rpc/x.py", "import asyncio\nasyncio.create_task(f())"),
        ("rpc/x.py", "import asyncio\nasyncio.get_running_loop().create_task(f())"),
        ("rpc/x.py", "def f(loop):\n    loop.create_task(g())"),
        ("rpc/x.py", "def f(self):\n    self._loop.create_task(g())"),
        ("rpc/x.py", "import asyncio\nasyncio.ensure_future(f())"),
        ("rpc/x.py", "from asyncio import create_task"),
    ],
    house.no_catch_all: [
        ("rpc/x.py", "try:\n    f()\nexcept:\n    pass"),
        ("rpc/x.py", "try:\n    f()\nexcept Exception:\n    pass"),
        ("rpc/x.py", "try:\n    f()\nexcept (OSError, BaseException) as error:\n    g(error)"),
        ("rpc/x.py", "def supervise():\n    try:\n        f()\n    except Exception:\n        pass"),
        ("aio.py", "def other():\n    try:\n        f()\n    except Exception:\n        pass"),
        ("rpc/x.py", "try:\n    f()\nexcept* Exception:\n    pass"),
        ("rpc/x.py", "with contextlib.suppress(Exception):\n    f()"),
        ("rpc/x.py", "try:\n    f()\nexcept BaseException:\n    if g():\n        raise"),
    ],
    house.no_print: [("rpc/x.py", "print('here')")],
    house.nothing_received_is_run: [
        ("model/x.py", "import pickle"),
        ("model/x.py", "from pickle import loads"),
        ("model/x.py", "from torch import load"),
        ("model/x.py", "import torch\ntorch.load(f)"),
        ("cli/x.py", "eval(text)"),
    ],
    house.sizes: [
        ("rpc/x.py", "a = 1\n" * 351),
        ("rpc/x.py", "def f():\n" + "    a = 1\n" * 60),
        ("rpc/x.py", "class A:\n    def __init__(self, a, b, c, d, e, f, *, g, h): ..."),
    ],
    house.is_pure: [
        ("data/ledger.py", "import time"),
        ("data/ledger.py", "from datetime import datetime"),
        ("data/ledger.py", "def f():\n    import asyncio"),
        ("data/ledger.py", "async def f(): ..."),
        ("data/ledger.py", "import random\nrandom.random()"),
        ("data/ledger.py", "import random\nrandom.Random()"),
        ("data/ledger.py", "from random import choice"),
        ("data/ledger.py", "import numpy as np\nnp.random.rand(3)"),
        ("data/ledger.py", "import numpy as np\nnp.random.default_rng()"),
        ("data/ledger.py", "import torch\ntorch.randn(3)"),
        ("data/ledger.py", "import os\nos.urandom(3)"),
    ],
}
"""For each rule, modules that break it: a rule that catches nothing protects nothing."""

GOOD_EXAMPLES: Mapping[Rule, list[tuple[str, str]]] = {
    house.import_direction: [
        ("roles/x.py", "from distqat.pipeline import hop\nfrom distqat import averaging, __version__"),
        ("data/sources/x.py", "from . import digits\nfrom ..ledger import Claim"),
        ("config.py", "from distqat.errors import ConfigError"),
    ],
    house.grpc_only_in_rpc: [("rpc/x.py", "import grpc"), ("data/x.py", "import grpclib")],
    house.pb_only_in_messages: [("data/messages.py", "from distqat.pb import data_pb2")],
    house.no_torch_in_the_control_plane: [("roles/trainer.py", "import torch"), ("cli/x.py", "import torchlight")],
    house.no_bare_tasks: [("rpc/x.py", "async def f(group):\n    group.create_task(g())")],
    house.no_catch_all: [
        ("aio.py", "async def supervise():\n    try:\n        f()\n    except Exception:\n        pass"),
        ("rpc/x.py", "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
        ("rpc/x.py", "try:\n    f()\nexcept OSError:\n    pass"),
    ],
    house.no_print: [("cli/x.py", "print('here')")],
    house.nothing_received_is_run: [("model/x.py", "import safetensors\nmodel.eval()")],
    house.sizes: [("rpc/x.py", "class A:\n    def __init__(self, a, b, c, d, e, f, *, g): ...")],
    house.is_pure: [
        ("data/ledger.py", "import random\ndef f(draw: random.Random):\n    return draw.random()"),
        ("data/ledger.py", "import random\nrandom.Random(7)"),
        ("data/ledger.py", "from random import Random\ndef f(random: Random):\n    return random.random()"),
        ("data/ledger.py", "import numpy as np\nnp.random.PCG64(7)"),
    ],
}


def test_every_rule_has_counter_examples() -> None:
    assert set(COUNTER_EXAMPLES) == set(GOOD_EXAMPLES) == {*house.RULES, house.is_pure}


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [(rule, *example) for rule, examples in COUNTER_EXAMPLES.items() for example in examples],
)
def test_a_module_that_breaks_the_rule_is_caught(rule: Rule, path: str, source: str) -> None:
    assert rule(Module(path, source))


@pytest.mark.parametrize(
    ("rule", "path", "source"), [(rule, *example) for rule, examples in GOOD_EXAMPLES.items() for example in examples]
)
def test_a_module_that_keeps_the_rule_is_not(rule: Rule, path: str, source: str) -> None:
    assert rule(Module(path, source)) == []
