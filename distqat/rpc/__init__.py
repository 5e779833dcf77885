"""Bytes to peers and back: `transport` (what the flows see), `grpc` (real) and `local` (in memory, with faults);
`wrapped` goes around either, for whoever wants to step in.

Behind them: `channels` (connections by endpoint and lane), `headers` (what a call says before its message), `streams`
and `pipes` (a stream's two ends, real and in memory), `endings` (how the real one says that it ends), `server` (who
listens), `handlers` (who answers), `status` (our errors to gRPC status and back), `traffic` (how many bytes), `links`
with `pacing` and `sockets` (what the host's links carry, and when bulk may leave), `cables` (what they carry in
memory), `virtual` (a clock that jumps), `loop` (the event loop of a daemon), and `mirror` (dataclasses to messages).
The only room that imports grpc; knows no message's meaning, no torch.
"""

import os

# Before grpc is imported: its C core would write to stderr what reaches our logs as errors with a sentence, and would
# hold back forks for a fork support that nothing here needs.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
