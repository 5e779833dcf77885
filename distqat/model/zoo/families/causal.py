"""The shape that the families of language models share: an embedding, layers, and a head, each a block or more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from distqat.errors import ModelError
from distqat.model.shapes import DataShape
from distqat.model.ties import BorrowedLinear
from distqat.model.zoo.blocks import BlockSpec, HiddenShape
from distqat.model.zoo.families.library import Numbers
from distqat.sections import ModelSection


@dataclass(frozen=True)
class CausalSizes:
    """What a language model's plan needs to know of its config."""

    vocabulary: int
    positions: int
    """The longest sequence that it takes."""
    width: int
    inner: int
    """Width within a layer's perceptron."""
    layers: int
    gates: int = 2
    """Matrices of a layer's perceptron."""


@dataclass(frozen=True)
class CausalParts:
    """How the blocks are made, and what the library's model calls them."""

    embedding: Callable[[], nn.Module]
    embedding_origins: Mapping[str, str]
    layer: Callable[[int], nn.Module]
    layers_origin: str
    """Such as `transformer.h`."""
    head: Callable[[], nn.Module]
    head_origins: Mapping[str, str]
    lends: str | None = None
    """The embedding's parameter with which a tied head computes."""


def causal_blocks(
    section: ModelSection, data: DataShape, sizes: CausalSizes, parts: CausalParts, numbers: Numbers
) -> list[BlockSpec]:
    """The blocks of a language model. Raises ModelError for data that do not fit."""
    (sequence,) = data.inputs
    if data.classes > sizes.vocabulary:
        raise ModelError(f"model {section.name}: {data.classes} tokens in the data, {sizes.vocabulary} in the model")
    if sequence > sizes.positions:
        raise ModelError(f"model {section.name} takes up to {sizes.positions} tokens, and a sample has {sequence}")
    width, stream = sizes.width, HiddenShape((sequence, sizes.width))
    layer_cost = 2.0 * sequence * (4 * width * width + sizes.gates * width * sizes.inner + 2 * sequence * width)

    def spec(
        name: str, make: Callable[[], nn.Module], cost: float, output: HiddenShape, origins: Mapping[str, str]
    ) -> BlockSpec:
        fresh, load = numbers.freshen, numbers.loader(origins)
        return BlockSpec(name, make, cost, output, is_foreign=True, initialise=fresh, load=load, origins=origins)

    embedding = spec("embedding", parts.embedding, 2.0 * sequence * width, stream, parts.embedding_origins)
    scores, head_cost = HiddenShape((sequence, sizes.vocabulary)), 2.0 * sequence * width * sizes.vocabulary
    return [
        replace(embedding, lends=parts.lends),
        *(
            spec(
                f"layer{index}",
                partial(parts.layer, index),
                layer_cost,
                stream,
                {"layer.": f"{parts.layers_origin}.{index}."},
            )
            for index in range(sizes.layers)
        ),
        spec("head", parts.head, head_cost, scores, parts.head_origins),
    ]


def projection(width: int, vocabulary: int, is_tied: bool) -> nn.Module:
    """From the stream to scores: with weights of its own, or with those of the embedding."""
    if is_tied:
        return BorrowedLinear(width, vocabulary)
    return nn.Linear(width, vocabulary, bias=False)


def expect_tokens(section: ModelSection, data: DataShape) -> None:
    """Raises ModelError for data of another kind."""
    if data.kind != "tokens":
        raise ModelError(f"model {section.name} takes tokens, and the data are {data.kind}")
