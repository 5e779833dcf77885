"""One peer of hivemind's DecentralizedAverager: an averager for each of the compressions that are asked for.

It takes outer rounds as DiLoCo on hivemind does: the difference from the anchor goes into the averager, and what comes
out is the gradient of an SGD with Nesterov momentum that moves the anchor.

`python -m bench.peers.averager HOST` listens on that IPv4 address.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from hivemind import DHT, DecentralizedAverager  # noqa: E402
from hivemind.averaging.control import AveragingStage, StepControl  # noqa: E402
from hivemind.averaging.matchmaking import MatchmakingException  # noqa: E402
from hivemind.averaging.partition import AllreduceException  # noqa: E402
from hivemind.compression import (  # noqa: E402
    BlockwiseQuantization,
    Float16Compression,
    NoCompression,
    Uniform8BitQuantization,
)
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, P2PHandlerError  # noqa: E402

from bench.peers import vectors  # noqa: E402
from bench.peers.answering import answer  # noqa: E402

COMPRESSIONS = {
    "NONE": NoCompression,
    "FLOAT16": Float16Compression,
    "UNIFORM_8BIT": Uniform8BitQuantization,
    "BLOCKWISE_8BIT": BlockwiseQuantization,
}

NUM_TENSORS = 20
"""Into which the vector is cut, as a model's is."""

OUTER_LEARNING_RATE = 0.7
OUTER_MOMENTUM = 0.9

LOOK = 0.002
"""Seconds between two looks at what a step is doing."""

FAILURES = (
    AllreduceException,
    MatchmakingException,
    P2PDaemonError,
    P2PHandlerError,
    CancelledError,
    TimeoutError,
    OSError,
    RuntimeError,
    ValueError,
)
"""In which a step may end that comes to nothing."""


class Averager:
    """Nothing until it is told who else there is."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._dht: Any = None
        self._rank = 0
        self._vectors: Sequence[torch.Tensor] = ()  # What the inner steps have come to: one vector, cut.
        self._anchors: Sequence[torch.Tensor] = ()
        self._outer: Any = None
        self._tensors: dict[str, list[torch.Tensor]] = {}  # By compression; what the averager shares with us.
        self._averagers: dict[str, Any] = {}

    def start(self, peers: Sequence[str]) -> list[str]:
        """Join the DHT of these peers, or begin it; where others find this one."""
        self._dht = DHT(
            initial_peers=list(peers),
            host_maddrs=[f"/ip4/{self._host}/tcp/0"],
            start=True,
            nat_port_map=False,
            auto_nat=False,
        )
        return [str(address) for address in self._dht.get_visible_maddrs()]

    def prepare(self, rank: int, group: int, elements: int, compressions: Sequence[str], name: str) -> None:
        """Averagers for groups of so many peers; those before are closed."""
        self._close()
        self._rank = rank
        self._vectors = vectors.vector(rank, elements).chunk(NUM_TENSORS)
        self._anchors = [torch.zeros_like(part) for part in self._vectors]
        self._outer = torch.optim.SGD(self._anchors, OUTER_LEARNING_RATE, OUTER_MOMENTUM, nesterov=True)
        for compression in compressions:
            tensors = [torch.zeros_like(part) for part in self._vectors]
            self._tensors[compression] = tensors
            self._averagers[compression] = DecentralizedAverager(
                tensors,
                self._dht,
                start=True,
                prefix=f"{name}-{compression}",
                target_group_size=group,
                compression=COMPRESSIONS[compression](),
            )

    def begin(self) -> None:
        """Put the anchor where it was at first."""
        for anchor in self._anchors:
            anchor.zero_()

    def average(
        self, compression: str, seconds: float, is_watched: bool = False, dies_after: float | None = None
    ) -> dict[str, Any]:
        """One outer round, of at most so many seconds, by the clock that all processes share.

        If it is watched it says when the exchange began; so long after that the process may kill itself.
        """
        began = time.monotonic()
        self._load(compression)
        loaded = time.monotonic()
        control = self._averagers[compression].step(wait=False, timeout=seconds)
        matched = self._wait_for_exchange(control) if is_watched else loaded
        if dies_after is not None:
            time.sleep(dies_after)
            os.killpg(0, signal.SIGKILL)
        try:
            size = len(control.result(timeout=seconds))
        except FAILURES:
            size = 0
        averaged = time.monotonic()
        self._step(compression)
        ended = time.monotonic()
        return {
            "began": began,
            "loaded": loaded,
            "matched": matched,
            "averaged": averaged,
            "ended": ended,
            "size": size,
        }

    def digest(self, compression: str) -> str:
        """Of the tensors as they are now."""
        found = hashlib.blake2b(digest_size=16)
        for tensor in self._tensors[compression]:
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    def error(self, compression: str, group: int) -> float:
        """Relative L2 distance of the averaged tensors from the mean of the group's vectors; the anchor was zero."""
        return vectors.error(-torch.cat(self._tensors[compression]), range(group))

    def _load(self, compression: str) -> None:
        with self._averagers[compression].get_tensors() as tensors:
            for tensor, anchor, vector in zip(tensors, self._anchors, self._vectors, strict=True):
                torch.sub(anchor, vector, out=tensor)

    def _step(self, compression: str) -> None:
        with self._averagers[compression].get_tensors() as tensors:
            for tensor, anchor in zip(tensors, self._anchors, strict=True):
                anchor.grad = tensor
            self._outer.step()

    def _wait_for_exchange(self, control: StepControl) -> float:
        while control.stage not in (AveragingStage.RUNNING_ALLREDUCE, AveragingStage.FINISHED) and not control.done():
            time.sleep(LOOK)
        return time.monotonic()

    def _close(self) -> None:
        for averager in self._averagers.values():
            averager.shutdown()
        self._averagers.clear()
        self._tensors.clear()


if __name__ == "__main__":
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    answer(Averager(sys.argv[1]))
    # hivemind's own way out takes ten seconds, and what it has started is all in this process group.
    os.killpg(0, signal.SIGKILL)
