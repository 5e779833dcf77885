"""Tensors to bytes and back.

In this order: `tensors` (headers and payload), `codecs` (what the bytes mean), `compression` with `linkrate` and `zstd`
(whether they are made smaller), `payload` (where they lie), `frames` (how they are cut and put together again).
No network here, and no protobuf: a flow's `messages.py` joins these bytes with its own headers.
"""
