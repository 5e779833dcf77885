"""The shapes of our models in plain torch, for a peer to train: the same blocks, the same numbers of parameters.

A recipe is what `bench.recipes.Recipe.described` gives.

Shapes: B samples, T tokens, C width, N heads, D width of a head, K channels, H height, W width of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build(recipe: Mapping[str, Any], begin: int, end: int) -> nn.Sequential:
    """The blocks from `begin` to before `end` of the model of a recipe."""
    make = _gpt if recipe["model"] == "gpt" else _resnet
    return nn.Sequential(*make(recipe, **recipe["options"])[begin:end])


def batch(recipe: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Random inputs and labels of one batch."""
    numbers = torch.Generator().manual_seed(1)
    sizes, classes = (recipe["samples"], *recipe["inputs"]), recipe["classes"]
    if recipe["model"] == "gpt":
        return torch.randint(classes, sizes, generator=numbers), torch.randint(classes, sizes, generator=numbers)
    return torch.randn(sizes, generator=numbers), torch.randint(classes, sizes[:1], generator=numbers)


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy; scores have the classes last."""
    return F.cross_entropy(scores.flatten(0, -2), labels.flatten())


def _gpt(recipe: Mapping[str, Any], layers: int = 4, heads: int = 4, width: int = 128) -> list[nn.Module]:
    (tokens,), classes = recipe["inputs"], recipe["classes"]
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes, bias=False))
    return [_Embedding(classes, tokens, width), *(_Layer(heads, width) for _ in range(layers)), head]


class _Embedding(nn.Module):
    def __init__(self, classes: int, tokens: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(classes, width)
        self.position = nn.Embedding(tokens, width)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        hidden_BTC: Tensor = self.token(tokens_BT) + self.position.weight
        return hidden_BTC


class _Layer(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.inputs = nn.Linear(width, 3 * width)
        self.outputs = nn.Linear(width, width)
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        samples, tokens, width = hidden_BTC.shape
        parts = self.inputs(self.attention_norm(hidden_BTC)).view(samples, tokens, 3, self.heads, width // self.heads)
        query_BNTD, key_BNTD, value_BNTD = parts.permute(2, 0, 3, 1, 4)
        mixed_BNTD = F.scaled_dot_product_attention(query_BNTD, key_BNTD, value_BNTD, is_causal=True)
        hidden_BTC = hidden_BTC + self.outputs(mixed_BNTD.transpose(1, 2).reshape(samples, tokens, width))
        return torch.add(hidden_BTC, self.perceptron(self.perceptron_norm(hidden_BTC)))


def _resnet(recipe: Mapping[str, Any], width: int = 16, blocks: tuple[int, ...] = (1, 1)) -> list[nn.Module]:
    found: list[nn.Module] = [_Convolution(recipe["inputs"][0], width, 3, 1, nn.ReLU())]
    channels = width
    for group, number in enumerate(blocks):
        for block in range(number):
            stride = 2 if group and not block else 1
            found.append(_Residual(channels, width << group, stride))
            channels = width << group
    return [*found, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, recipe["classes"]))]


class _Convolution(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int, *after: nn.Module) -> None:
        convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), *after)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = _Convolution(inputs, outputs, 3, stride, nn.ReLU())
        self.branch = nn.Sequential(first, _Convolution(outputs, outputs, 3, 1))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _Convolution(inputs, outputs, 1, stride)

    def forward(self, hidden_BKHW: Tensor) -> Tensor:
        return F.relu(self.branch(hidden_BKHW) + self.shortcut(hidden_BKHW))
