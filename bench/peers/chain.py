"""A client that chains hivemind's remote experts as its users do: call one after the other, compute the loss here, and
let autograd call them backwards.

`python -m bench.peers.chain HOST` has the IPv4 address HOST.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from hivemind.moe.client.expert import RemoteExpert  # noqa: E402
from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker  # noqa: E402
from hivemind.moe.expert_uid import ExpertInfo  # noqa: E402
from hivemind.p2p import P2P, PeerID  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.utils import P2PHandlerError  # noqa: E402

from bench.peers import models  # noqa: E402
from bench.peers.answering import answer  # noqa: E402

CALL_FAILURES = (P2PHandlerError, RuntimeError, ValueError, IndexError, StopIteration)
"""Now and then a call is answered with an empty stream, which ends in one of these; a user asks again."""

MAX_FAILURES = 20


class Chain:
    """Nothing until it is told which experts there are."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._experts: dict[str, list[RemoteExpert]] = {}  # By compression, stage 0 first.
        self._inputs = self._labels = torch.empty(0)
        self._failures = 0

    def connect(
        self, recipe: Mapping[str, Any], servers: Sequence[tuple[Sequence[str], str]], compressions: Sequence[str]
    ) -> None:
        """The experts of each compression on these servers; the addresses and name of each, stage 0 first."""
        self._inputs, self._labels = models.batch(recipe)
        peers = [address for addresses, _ in servers for address in addresses]
        p2p = RemoteExpertWorker.run_coroutine(
            P2P.create(
                initial_peers=peers, host_maddrs=[f"/ip4/{self._host}/tcp/0"], nat_port_map=False, auto_nat=False
            )
        )
        for name in compressions:
            self._experts[name] = [
                RemoteExpert(ExpertInfo(f"{name}.0", PeerID.from_base58(peer)), p2p) for _, peer in servers
            ]

    def train(self, compression: str, steps: int, parts: int = 1) -> tuple[float, int]:
        """Seconds of so many batches, each cut into `parts` that are under way at once; calls that failed so far."""
        experts = self._experts[compression]
        pieces = list(zip(self._inputs.chunk(parts), self._labels.chunk(parts), strict=True))
        began = time.perf_counter()
        with ThreadPoolExecutor(parts) as threads:
            for _ in range(steps):
                list(threads.map(lambda piece: self._step(experts, *piece), pieces))
        return time.perf_counter() - began, self._failures

    def _step(self, experts: Sequence[RemoteExpert], inputs: torch.Tensor, labels: torch.Tensor) -> None:
        while True:
            try:
                hidden = inputs
                for expert in experts:
                    hidden = expert(hidden)
                torch.autograd.backward(models.loss(hidden, labels))
                return
            except CALL_FAILURES:
                self._failures += 1
                if self._failures > MAX_FAILURES:
                    raise


if __name__ == "__main__":
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    answer(Chain(sys.argv[1]))
    # hivemind's own way out takes ten seconds, and what it has started is all in this process group.
    os.killpg(0, signal.SIGKILL)
