"""One stage as hivemind's remote expert, in a server of its own: once for each of its compressions.

`python -m bench.peers.expert HOST` listens on that IPv4 address.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from hivemind import DHT  # noqa: E402
from hivemind.moe.server import ModuleBackend, Server  # noqa: E402
from hivemind.proto.runtime_pb2 import CompressionType  # noqa: E402
from hivemind.utils.tensor_descr import BatchTensorDescriptor  # noqa: E402

from bench.peers import models  # noqa: E402
from bench.peers.answering import answer  # noqa: E402

HANDLERS = 4
"""As hivemind recommends for a server."""


class Expert:
    """Nothing until it is told what to serve."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._running: list[object] = []

    def serve(
        self, recipe: Mapping[str, Any], begin: int, end: int, compressions: Sequence[str]
    ) -> tuple[list[str], str]:
        """Start the server; where clients find it. The expert with compression NAME has the uid `NAME.0`."""
        entering, leaving = _passes(recipe, begin), _passes(recipe, end)
        backends = {}
        for name in compressions:
            module = models.build(recipe, begin, end)
            kind = getattr(CompressionType, name)
            backends[f"{name}.0"] = ModuleBackend(
                f"{name}.0",
                module,
                optimizer=torch.optim.AdamW(module.parameters(), lr=2e-3),
                args_schema=(_described(entering, kind),),
                outputs_schema=_described(leaving, kind),
                max_batch_size=1 << 20,
            )
        dht = DHT(start=True, host_maddrs=[f"/ip4/{self._host}/tcp/0"], nat_port_map=False, auto_nat=False)
        server = Server(dht, backends, num_connection_handlers=HANDLERS, device="cpu")
        server.start()
        server.ready.wait()
        self._running = [dht, server]
        return [str(address) for address in dht.get_visible_maddrs()], dht.peer_id.to_base58()


def _passes(recipe: Mapping[str, Any], end: int) -> torch.Tensor:
    """What leaves the first `end` blocks for two samples."""
    with torch.no_grad():
        found: torch.Tensor = models.build(recipe, 0, end)(models.batch({**recipe, "samples": 2})[0])
    return found


def _described(tensor: torch.Tensor, compression: int) -> BatchTensorDescriptor:
    """Tokens travel as they are."""
    kind = compression if tensor.is_floating_point() else CompressionType.NONE
    return BatchTensorDescriptor(*tensor.shape[1:], dtype=tensor.dtype, compression=kind)


if __name__ == "__main__":
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    answer(Expert(sys.argv[1]))
    # hivemind's own way out takes ten seconds, and what it has started is all in this process group.
    os.killpg(0, signal.SIGKILL)
