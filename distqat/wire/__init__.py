"""Tensors to bytes and back.

In this order: `tensors` (header and payload), `codecs` (what the bytes mean), `frames` (how they are cut).
No network here, and no protobuf: a flow's `messages.py` joins these bytes with its own headers.
"""
