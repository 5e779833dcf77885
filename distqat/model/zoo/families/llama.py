"""The Llama family (Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023).

Positions turn queries and keys, so each layer computes their angles anew and no table passes from stage to stage.
Shapes: B samples, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec
from distqat.model.zoo.families.causal import CausalParts, CausalSizes, causal_blocks, expect_tokens, projection
from distqat.model.zoo.families.library import Numbers, configure
from distqat.sections import ModelSection


class Embedding(nn.Module):
    """Tokens to the stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        hidden_BTC: Tensor = self.embed_tokens(tokens_BT)
        return hidden_BTC


class Layer(nn.Module):
    """The library's own layer, with the angles of its positions."""

    def __init__(self, config: LlamaConfig, index: int) -> None:
        super().__init__()
        self.layer = LlamaDecoderLayer(config, index)
        self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        positions_1T = torch.arange(hidden_BTC.shape[1], device=hidden_BTC.device).unsqueeze(0)
        angles = self.rotary(hidden_BTC, position_ids=positions_1T)
        added_BTC: Tensor = self.layer(hidden_BTC, position_ids=positions_1T, position_embeddings=angles)
        return added_BTC


class Head(nn.Module):
    """Scores of the next token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = projection(config.hidden_size, config.vocab_size, config.tie_word_embeddings)

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        scores_BTV: Tensor = self.lm_head(self.norm(hidden_BTC))
        return scores_BTV


def blocks(section: ModelSection, data: DataShape, sizes: Mapping[str, object]) -> list[BlockSpec]:
    """The blocks of a Llama of these sizes. Raises ModelError for options, data or pretrained files that do not fit."""
    expect_tokens(section, data)
    config, checkpoint = configure(LlamaConfig, section, {"vocab_size": data.classes, **sizes})
    parts = CausalParts(
        partial(Embedding, config),
        {"": "model."},
        partial(Layer, config),
        "model.layers",
        partial(Head, config),
        {"norm.": "model.norm.", "lm_head.": "lm_head."},
        "embed_tokens.weight" if config.tie_word_embeddings else None,
    )
    known = CausalSizes(
        config.vocab_size,
        config.max_position_embeddings,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        gates=3,
    )
    tied = {"lm_head.weight": ("model.embed_tokens.weight",)}
    return causal_blocks(section, data, known, parts, Numbers(LlamaPreTrainedModel(config), checkpoint, tied))
