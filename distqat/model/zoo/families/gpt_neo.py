"""The GPT-Neo family (Black et al., GPT-Neo: Large Scale Autoregressive Language Modeling, 2021).

Layers look at everything before, and at a window, in turn. Shapes: B samples, T tokens, C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn
from transformers.models.gpt_neo.configuration_gpt_neo import GPTNeoConfig
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock, GPTNeoPreTrainedModel

from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec
from distqat.model.zoo.families.causal import CausalParts, CausalSizes, causal_blocks, expect_tokens
from distqat.model.zoo.families.gpt2 import TIED, Embedding, Head
from distqat.model.zoo.families.library import Numbers, configure
from distqat.sections import ModelSection


class Layer(nn.Module):
    """The library's own block."""

    def __init__(self, config: GPTNeoConfig, index: int) -> None:
        super().__init__()
        self.layer = GPTNeoBlock(config, layer_id=index)

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        added_BTC: Tensor = self.layer(hidden_BTC)[0]
        return added_BTC


def _turns(layers: object) -> list[object] | None:
    """Which layers look at everything, as the config has it; None leaves a wrong number to the config."""
    if not isinstance(layers, int):
        return None
    return [[["global", "local"], layers // 2], [["global"], layers % 2]]


def blocks(section: ModelSection, data: DataShape, sizes: Mapping[str, object]) -> list[BlockSpec]:
    """The blocks of a GPT-Neo of these sizes. Raises ModelError for options, data or files that do not fit."""
    expect_tokens(section, data)
    layers = section.options.get("num_layers", section.options.get("num_hidden_layers", sizes.get("num_layers", 24)))
    plain = {"vocab_size": data.classes, **sizes, "attention_types": _turns(layers)}
    config, checkpoint = configure(GPTNeoConfig, section, plain, "eager")
    width, vocabulary = config.hidden_size, config.vocab_size
    parts = CausalParts(
        partial(Embedding, vocabulary, config.max_position_embeddings, width, float(config.embed_dropout)),
        {"": "transformer."},
        partial(Layer, config),
        "transformer.h",
        partial(Head, width, vocabulary, config.layer_norm_epsilon, config.tie_word_embeddings),
        {"ln_f.": "transformer.ln_f.", "lm_head.": "lm_head."},
        "wte.weight" if config.tie_word_embeddings else None,
    )
    inner = config.intermediate_size or 4 * width
    known = CausalSizes(vocabulary, config.max_position_embeddings, width, inner, config.num_layers)
    return causal_blocks(section, data, known, parts, Numbers(GPTNeoPreTrainedModel(config), checkpoint, TIED))
