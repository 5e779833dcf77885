"""hivemind's tensor codecs, through its public functions: from a tensor to its message object and back."""

from __future__ import annotations

import os
import time
import warnings

os.environ["QUANTIZATION_THREADS"] = "1"
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor  # noqa: E402
from hivemind.proto import runtime_pb2  # noqa: E402

from bench.peers.answering import answer  # noqa: E402


class Codecs:
    """Holds the tensor that is encoded."""

    def __init__(self) -> None:
        self._tensor = torch.empty(0)

    def prepare(self, *shape: int) -> None:
        """Normal numbers."""
        self._tensor = torch.randn(shape)

    def measure(self, codec: str) -> tuple[float, float]:
        """Seconds of the processor that encoding takes, and decoding."""
        kind = getattr(runtime_pb2.CompressionType, codec)
        began = time.process_time()
        encoded = serialize_torch_tensor(self._tensor, kind)
        between = time.process_time()
        decoded = deserialize_torch_tensor(encoded)
        ended = time.process_time()
        assert decoded.shape == self._tensor.shape
        return between - began, ended - between


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(Codecs())
