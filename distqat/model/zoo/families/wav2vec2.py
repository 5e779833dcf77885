"""wav2vec 2.0 with a head for CTC (Baevski et al., wav2vec 2.0, 2020).

Models whose features are normalised layer by layer know which frames are padding: those of zeros at the end. Lengths
ride along from block to block, and the head says blank wherever there is nothing, so a loss needs no lengths.

Shapes: B samples, S samples of sound, T frames, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2EncoderLayer,
    Wav2Vec2EncoderLayerStableLayerNorm,
    Wav2Vec2FeatureEncoder,
    Wav2Vec2FeatureProjection,
    Wav2Vec2Model,
    Wav2Vec2PositionalConvEmbedding,
    Wav2Vec2PreTrainedModel,
)

from distqat.errors import ModelError
from distqat.model.shapes import DataShape
from distqat.model.zoo.blocks import BlockSpec, HiddenShape
from distqat.model.zoo.families import riders
from distqat.model.zoo.families.library import Numbers, configure
from distqat.sections import ModelSection

SILENT = -1e4
"""The score of everything but blank in a frame of padding."""

_POSITIONS = "wav2vec2.encoder.pos_conv_embed.conv"
_ALIASES = {
    f"{_POSITIONS}.parametrizations.weight.original0": (f"{_POSITIONS}.weight_g",),
    f"{_POSITIONS}.parametrizations.weight.original1": (f"{_POSITIONS}.weight_v",),
}
_NEW = ("wav2vec2.masked_spec_embed", "lm_head.weight", "lm_head.bias")
"""What a checkpoint from before the fine-tuning does not have."""


def is_masked(config: Wav2Vec2Config) -> bool:
    """Whether the model knows padding; those with a group norm were trained without."""
    return bool(config.feat_extract_norm == "layer")


def num_frames(config: Wav2Vec2Config, samples: int) -> int:
    """Frames of so much sound; less than 1 when it is too short."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


class _Part(nn.Module):
    """A block that takes lengths off its input and puts them on its output, where the model knows padding."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config

    def compute(self, hidden_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        """What the block does; the mask is false in frames of padding."""
        raise NotImplementedError

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        if not is_masked(self.config):
            return self.compute(hidden_BTC, None)
        hidden_BTC, lengths_B = riders.take_off(hidden_BTC)
        frames_T = torch.arange(hidden_BTC.shape[1], device=hidden_BTC.device)
        return riders.put_on(self.compute(hidden_BTC, frames_T < lengths_B.unsqueeze(1)), lengths_B)


class Features(nn.Module):
    """Sound to features, and the lengths to begin with."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.features = Wav2Vec2FeatureEncoder(config)

    def forward(self, sound_BS: Tensor) -> Tensor:
        hidden_BTC: Tensor = self.features(sound_BS).transpose(1, 2)
        return riders.put_on(hidden_BTC, self._lengths(sound_BS)) if is_masked(self.config) else hidden_BTC

    def _lengths(self, sound_BS: Tensor) -> Tensor:
        """Frames up to the last sample that is not zero, at least one."""
        ends_S = torch.arange(1, sound_BS.shape[1] + 1, device=sound_BS.device)
        lengths_B = (ends_S * (sound_BS != 0)).amax(1)
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths_B = torch.div(lengths_B - kernel, stride, rounding_mode="floor") + 1
        return lengths_B.clamp(min=1)


class Projection(_Part):
    """Features to the stream, with SpecAugment in training."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.projection = Wav2Vec2FeatureProjection(config)
        if config.mask_time_prob > 0.0 or config.mask_feature_prob > 0.0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size))

    def compute(self, hidden_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        projected_BTC, _ = self.projection(hidden_BTC)
        masked_BTC: Tensor = Wav2Vec2Model._mask_hidden_states(self, projected_BTC, attention_mask=mask_BT)
        return masked_BTC


class Positions(_Part):
    """Adds the positional convolution."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        self.pos_conv_embed = Wav2Vec2PositionalConvEmbedding(config)
        self.layer_norm: nn.Module | None = None
        if not config.do_stable_layer_norm:
            self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def compute(self, hidden_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        if mask_BT is not None:
            hidden_BTC = hidden_BTC.masked_fill(~mask_BT.unsqueeze(-1), 0.0)
        hidden_BTC = hidden_BTC + self.pos_conv_embed(hidden_BTC)
        if self.layer_norm is not None:
            hidden_BTC = self.layer_norm(hidden_BTC)
        dropped_BTC: Tensor = self.dropout(hidden_BTC)
        return dropped_BTC


class Layer(_Part):
    """The library's own layer, left out now and then in training (LayerDrop)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__(config)
        kind = Wav2Vec2EncoderLayerStableLayerNorm if config.do_stable_layer_norm else Wav2Vec2EncoderLayer
        self.layer = kind(config)

    def compute(self, hidden_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
        if self.training and self.config.layerdrop > 0.0 and bool(torch.rand([]) < self.config.layerdrop):
            return hidden_BTC
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_BTC, attention_mask=mask_BT)
        mixed_BTC: Tensor = self.layer(hidden_BTC, attention_mask=mask)
        return mixed_BTC


class Head(nn.Module):
    """Scores of the vocabulary in each frame."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.layer_norm: nn.Module | None = None
        if config.do_stable_layer_norm:
            self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_BTC: Tensor) -> Tensor:
        if not is_masked(self.config):
            return self._scores(hidden_BTC)
        hidden_BTC, lengths_B = riders.take_off(hidden_BTC)
        scores_BTV = self._scores(hidden_BTC)
        padding_BT = torch.arange(hidden_BTC.shape[1], device=hidden_BTC.device) >= lengths_B.unsqueeze(1)
        silence_V = torch.full((self.config.vocab_size,), SILENT, device=hidden_BTC.device, dtype=scores_BTV.dtype)
        silence_V[self.config.pad_token_id] = 0.0
        return torch.where(padding_BT.unsqueeze(-1), silence_V, scores_BTV)

    def _scores(self, hidden_BTC: Tensor) -> Tensor:
        if self.layer_norm is not None:
            hidden_BTC = self.layer_norm(hidden_BTC)
        scores_BTV: Tensor = self.lm_head(self.dropout(hidden_BTC))
        return scores_BTV


class _Numbers(Numbers):
    """With what the library leaves to constructors, which a block on the meta device has run in vain."""

    def freshen(self, block: nn.Module) -> None:
        super().freshen(block)
        if isinstance(block, Projection) and hasattr(block, "masked_spec_embed"):
            block.masked_spec_embed.uniform_()
        if isinstance(block, Positions):
            convolution = block.pos_conv_embed.conv
            spread = 2 * (convolution.kernel_size[0] * convolution.in_channels) ** -0.5
            convolution.weight = torch.empty_like(convolution.weight).normal_(std=spread)


def blocks(section: ModelSection, data: DataShape, sizes: Mapping[str, object]) -> list[BlockSpec]:
    """The blocks of a wav2vec 2.0 of these sizes. Raises ModelError for options, data or files that do not fit."""
    if data.kind != "audio":
        raise ModelError(f"model {section.name} takes audio, and the data are {data.kind}")
    config, checkpoint = configure(Wav2Vec2Config, section, {"vocab_size": data.classes, **sizes})
    _check(section, config, data)
    return _Plan(config, data, _Numbers(Wav2Vec2PreTrainedModel(config), checkpoint, _ALIASES, _NEW)).blocks()


def _check(section: ModelSection, config: Wav2Vec2Config, data: DataShape) -> None:
    frames = num_frames(config, data.inputs[0])
    if config.add_adapter:
        raise ModelError(f"model {section.name} with add_adapter is not known; its head is for CTC")
    if data.classes > config.vocab_size:
        raise ModelError(f"model {section.name}: {data.classes} classes in the data, {config.vocab_size} in the model")
    if not 1 <= frames < 1 << riders.BITS:
        raise ModelError(f"model {section.name}: {data.inputs[0]} samples of sound are {frames} frames")
    if is_masked(config) and min(config.conv_dim[-1], config.hidden_size) < riders.BITS:
        raise ModelError(f"model {section.name}: a width below {riders.BITS} is too narrow to carry lengths")


class _Plan:
    """Puts the blocks together."""

    def __init__(self, config: Wav2Vec2Config, data: DataShape, numbers: Numbers) -> None:
        self.config = config
        self.numbers = numbers
        self.sound = data.inputs[0]
        self.frames = num_frames(config, self.sound)

    def blocks(self) -> list[BlockSpec]:
        config, frames = self.config, self.frames
        width, inner = config.hidden_size, config.intermediate_size
        # Features leave as many frames as the stream has, and as many lengths.
        features, stream = self._hidden(config.conv_dim[-1]), self._hidden(width)
        convolution = 2.0 * frames * width * width * config.num_conv_pos_embeddings
        layer = 2.0 * frames * (4 * width * width + 2 * width * inner + 2 * frames * width)
        scores = HiddenShape((frames, config.vocab_size))
        spectrum = {"projection.": "wav2vec2.feature_projection.", "masked": "wav2vec2.masked"}
        norm = {"layer_norm.": "wav2vec2.encoder.layer_norm.", "lm_head.": "lm_head."}
        return [
            self._spec(
                "features", Features, self._feature_cost(), features, {"features.": "wav2vec2.feature_extractor."}
            ),
            self._spec("projection", Projection, 2.0 * frames * config.conv_dim[-1] * width, stream, spectrum),
            self._spec(
                "positions",
                Positions,
                convolution / config.num_conv_pos_embedding_groups,
                stream,
                {"": "wav2vec2.encoder."},
            ),
            *(
                self._spec(f"layer{index}", Layer, layer, stream, {"layer.": f"wav2vec2.encoder.layers.{index}."})
                for index in range(config.num_hidden_layers)
            ),
            self._spec("head", Head, 2.0 * frames * width * config.vocab_size, scores, norm),
        ]

    def _hidden(self, width: int) -> HiddenShape:
        rides = is_masked(self.config)
        return HiddenShape((self.frames + rides, width), has_riders=rides)

    def _feature_cost(self) -> float:
        config, samples, inputs, cost = self.config, self.sound, 1, 0.0
        for outputs, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
            cost += 2.0 * samples * inputs * outputs * kernel
            inputs = outputs
        return cost

    def _spec(
        self,
        name: str,
        kind: Callable[[Wav2Vec2Config], nn.Module],
        cost: float,
        output: HiddenShape,
        origins: dict[str, str],
    ) -> BlockSpec:
        make, fresh, load = partial(kind, self.config), self.numbers.freshen, self.numbers.loader(origins)
        return BlockSpec(name, make, cost, output, is_foreign=True, initialise=fresh, load=load, origins=origins)
