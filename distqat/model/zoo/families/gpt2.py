"""The GPT-2 family: distilgpt2 to gpt2-xl (Radford et al., Language Models are Unsupervised Multitask Learners, 2019).

Shapes: B samples, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block, GPT2PreTrainedModel

from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec
from distqat.model.zoo.families.causal import CausalParts, CausalSizes, causal_blocks, expect_tokens, projection
from distqat.model.zoo.families.library import Numbers, configure
from distqat.sections import ModelSection

TIED = {"lm_head.weight": ("transformer.wte.weight",)}


class Embedding(nn.Module):
    """Tokens and their positions to the stream; also that of GPT-Neo."""

    def __init__(self, vocabulary: int, positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(positions, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        positions_1T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).unsqueeze(0)
        hidden_BTC: Tensor = self.drop(self.wte(tokens_BT) + self.wpe(positions_1T))
        return hidden_BTC


class Layer(nn.Module):
    """The library's own block."""

    def __init__(self, config: GPT2Config, index: int) -> None:
        super().__init__()
        self.layer = GPT2Block(config, layer_idx=index)

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        added_BTC: Tensor = self.layer(hidden_BTC)
        return added_BTC


class Head(nn.Module):
    """Scores of the next token; also that of GPT-Neo."""

    def __init__(self, width: int, vocabulary: int, epsilon: float, is_tied: bool) -> None:
        super().__init__()
        self.ln_f = nn.LayerNorm(width, eps=epsilon)
        self.lm_head = projection(width, vocabulary, is_tied)

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        scores_BTV: Tensor = self.lm_head(self.ln_f(hidden_BTC))
        return scores_BTV


def blocks(section: ModelSection, data: DataShape, sizes: Mapping[str, object]) -> list[BlockSpec]:
    """The blocks of a GPT-2 of these sizes. Raises ModelError for options, data or pretrained files that do not fit."""
    expect_tokens(section, data)
    config, checkpoint = configure(GPT2Config, section, {"vocab_size": data.classes, **sizes})
    width, vocabulary = config.n_embd, config.vocab_size
    parts = CausalParts(
        partial(Embedding, vocabulary, config.n_positions, width, config.embd_pdrop),
        {"": "transformer."},
        partial(Layer, config),
        "transformer.h",
        partial(Head, width, vocabulary, config.layer_norm_epsilon, config.tie_word_embeddings),
        {"ln_f.": "transformer.ln_f.", "lm_head.": "lm_head."},
        "wte.weight" if config.tie_word_embeddings else None,
    )
    known = CausalSizes(vocabulary, config.n_positions, width, config.n_inner or 4 * width, config.n_layer)
    return causal_blocks(section, data, known, parts, Numbers(GPT2PreTrainedModel(config), checkpoint, TIED))
