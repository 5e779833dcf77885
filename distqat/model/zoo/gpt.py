"""A decoder-only transformer with learned positions, for text as bytes.

Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

The head has its own weights, so no tensor belongs to two stages. Dropout acts where the embedding and the branches join
the stream, not on attention weights, so attention is one fused kernel.

Shapes: B samples, T tokens, C width, N heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distqat.errors import ModelError
from distqat.model.rng import Dropout
from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec, HiddenShape
from distqat.model.zoo.options import Options


class GptOptions(Options):
    """Sizes of `gpt`."""

    layers: int = Field(4, ge=1, le=1024, description="Transformer blocks.")
    heads: int = Field(4, ge=1, le=1024, description="Attention heads; they share the width evenly.")
    width: int = Field(128, ge=1, le=1 << 16, description="Width of the stream.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of elements dropped in training.")


class Embedding(nn.Module):
    """Tokens and their positions to the stream."""

    def __init__(self, vocabulary: int, sequence: int, width: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(sequence, width)
        self.dropout = Dropout(dropout)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        hidden_BTC: Tensor = self.dropout(self.token(tokens_BT) + self.position.weight)
        return hidden_BTC


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, heads: int, width: int, spread: float) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.outputs = nn.Linear(width, width)
        self.outputs.initial_std = spread  # type: ignore[assignment]

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        batch, tokens, width = hidden_BTC.shape
        parts = self.inputs(hidden_BTC).view(batch, tokens, 3, self.heads, width // self.heads)
        query_BNTD, key_BNTD, value_BNTD = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BNTD = F.scaled_dot_product_attention(query_BNTD, key_BNTD, value_BNTD, is_causal=True)
        mixed_BTC: Tensor = self.outputs(mixed_BNTD.transpose(1, 2).reshape(batch, tokens, width))
        return mixed_BTC


class Layer(nn.Module):
    """Attention and a perceptron, each behind a norm and beside the stream."""

    def __init__(self, heads: int, width: int, dropout: float, spread: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(heads, width, spread)
        self.perceptron_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.narrow.initial_std = spread  # type: ignore[assignment]
        self.attention_dropout = Dropout(dropout)
        self.perceptron_dropout = Dropout(dropout)

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        added_BTC = self.attention(self.attention_norm(hidden_BTC))
        hidden_BTC = hidden_BTC + self.attention_dropout(added_BTC)
        added_BTC = self.narrow(F.gelu(self.widen(self.perceptron_norm(hidden_BTC)), approximate="tanh"))
        return torch.add(hidden_BTC, self.perceptron_dropout(added_BTC))


class Head(nn.Module):
    """Scores of the next token."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, vocabulary, bias=False)
        self.linear.initial_std = 0.02  # type: ignore[assignment]

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        scores_BTV: Tensor = self.linear(self.norm(hidden_BTC))
        return scores_BTV


def blocks(values: dict[str, object], data: DataShape) -> list[BlockSpec]:
    """The blocks of `gpt`. Raises ModelError for options or data that do not fit."""
    options = GptOptions.read("gpt", values)
    if data.kind != "tokens":
        raise ModelError(f"model gpt takes tokens, and the data are {data.kind}")
    if options.width % options.heads:
        raise ModelError(f"model gpt: {options.heads} heads cannot share a width of {options.width} evenly")
    (sequence,), width, classes = data.inputs, options.width, data.classes
    stream = HiddenShape((sequence, width))
    # As in GPT-2: branches begin smaller the more of them add to the stream.
    spread = 0.02 / (2 * options.layers) ** 0.5
    embedding = partial(Embedding, classes, sequence, width, options.dropout)
    layer = partial(Layer, options.heads, width, options.dropout, spread)
    layer_cost = sequence * (24.0 * width * width + 4.0 * sequence * width)
    head, scores = partial(Head, width, classes), HiddenShape((sequence, classes))
    return [
        BlockSpec("embedding", embedding, 2.0 * sequence * width, stream),
        *(BlockSpec(f"layer{number}", layer, layer_cost, stream) for number in range(options.layers)),
        BlockSpec("head", head, 2.0 * sequence * width * classes, scores),
    ]
