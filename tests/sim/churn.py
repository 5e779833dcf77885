"""Swarms and what befalls them, drawn from a seed: sizes, links, pins; leaves, bursts, racks, hangs, lost trainers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from distqat.sections import PlanSection
from tests.sim.planning import LEASE_SECONDS, Planned, Shape

RACK = 8
"""Hosts that fail together."""


def draw_shape(draw: Random, num_hosts: int) -> Shape:
    """Stages of unequal size on links of unequal rate; some hosts are pinned, in some swarms."""
    num_stages = draw.randint(1, min(8, num_hosts))
    sizes = tuple(1e7 * draw.lognormvariate(0.0, 0.7) for _ in range(num_stages))
    rates = tuple(draw.choice((5e6, 2e7, 1e8)) for _ in range(num_hosts))
    share = draw.choice((0.0, 0.0, 0.2, 0.6))
    pins = {n: draw.randrange(num_stages) for n in range(num_hosts) if draw.random() < share}
    most = draw.choice((64, 64, max(1, num_hosts // (2 * num_stages))))
    section = PlanSection(max_pipelines=most, cooldown=draw.choice((0.5, 2.0)))
    return Shape(sizes, rates, pins, draw.randint(1, 4), section)


def poisson(swarm: Planned, draw: Random, seconds: float, mean: float) -> None:
    """Hosts leave one by one, and come back after a while."""
    time = 0.0
    while (time := time + draw.expovariate(1.0 / mean)) < seconds:
        peer = draw.choice(list(swarm.hosts))
        swarm.at(swarm.now + time, partial(swarm.crash, peer))
        swarm.at(swarm.now + time + draw.expovariate(1.0 / (5 * mean)), partial(swarm.back, peer))


def hangs(swarm: Planned, draw: Random, seconds: float, mean: float) -> None:
    """Hosts stand still, some for less than a lease."""
    time = 0.0
    while (time := time + draw.expovariate(1.0 / mean)) < seconds:
        peer = draw.choice(list(swarm.hosts))
        swarm.at(swarm.now + time, partial(swarm.hang, peer))
        swarm.at(swarm.now + time + draw.uniform(0.2, 4 * LEASE_SECONDS), partial(swarm.back, peer))


def burst(swarm: Planned, draw: Random, seconds: float) -> None:
    """A third at once; they come back one after the other."""
    time = swarm.now + draw.uniform(0, seconds)
    for peer in draw.sample(list(swarm.hosts), max(1, len(swarm.hosts) // 3)):
        swarm.at(time, partial(draw.choice((swarm.crash, swarm.hang)), peer))
        swarm.at(time + draw.uniform(1, seconds), partial(swarm.back, peer))


def rack(swarm: Planned, draw: Random, seconds: float) -> None:
    """Neighbours at once, and they return at once."""
    hosts = list(swarm.hosts)
    first = draw.randrange(len(hosts))
    time, pause = swarm.now + draw.uniform(0, seconds), draw.uniform(1, seconds)
    for peer in hosts[first : first + min(RACK, max(1, len(hosts) // 2))]:
        swarm.at(time, partial(swarm.crash, peer))
        swarm.at(time + pause, partial(swarm.back, peer))


def trainers(swarm: Planned, draw: Random, seconds: float) -> None:
    """One trainer is lost, and another time all of them."""
    names = list(swarm.trainers)
    for lost in ([draw.choice(names)], names):
        time, pause = swarm.now + draw.uniform(0, seconds), draw.uniform(0.1, 10.0)
        for trainer in lost:
            swarm.at(time, partial(swarm.lose_trainer, trainer))
            swarm.at(time + pause, partial(swarm.trainer_back, trainer))


def fault(swarm: Planned, draw: Random) -> None:
    """One mishap, now; nobody comes back."""
    hosts = [peer for peer, host in swarm.hosts.items() if host.works]
    first = draw.randrange(len(hosts))
    match draw.choice(("crash", "crash", "hang", "burst", "rack", "trainer")):
        case "crash":
            swarm.crash(hosts[first])
        case "hang":
            swarm.hang(hosts[first])
        case "burst":
            for peer in draw.sample(hosts, max(1, len(hosts) // 3)):
                swarm.crash(peer)
        case "rack":
            for peer in hosts[first : first + RACK]:
                swarm.crash(peer)
        case "trainer":
            trainer = draw.choice(list(swarm.trainers))
            swarm.lose_trainer(trainer)
            swarm.at(swarm.now + draw.uniform(0.1, 10.0), partial(swarm.trainer_back, trainer))


def churn(swarm: Planned, draw: Random, seconds: float) -> None:
    """One or several of these kinds of mishap."""
    mean = draw.choice((0.5, 2.0, 10.0))
    kinds: list[Callable[[], None]] = [
        partial(poisson, swarm, draw, seconds, mean),
        partial(hangs, swarm, draw, seconds, mean),
        partial(burst, swarm, draw, seconds),
        partial(rack, swarm, draw, seconds),
        partial(trainers, swarm, draw, seconds),
    ]
    for kind in draw.sample(kinds, draw.randint(1, len(kinds))):
        kind()
