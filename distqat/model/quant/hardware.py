"""A layer as its hardware computes it: what enters is laid out for the array, and what leaves it becomes values again.

Outside of the array are the steps, the bias, and what an offset of the inputs adds: `w (s c + o)` is `s w c + w o`, and
the second part is the same for every sample. At the border of a convolution, where zeros are put around an image, it is
less: these zeros have code 0 and no offset.

Shapes: B samples, G groups, O channels that leave a group, K products of an output, P places of a sample's outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distqat.model.quant.grid import Channels, beside
from distqat.model.quant.integer import Array, accumulate, accumulate_by_channel
from distqat.model.quant.quantizers import Coded

Convolution = nn.Conv1d | nn.Conv2d


def compute(layer: Any, weight: Coded, inputs: Coded, input_channels: Channels | None, array: Array) -> Tensor:
    """What leaves a linear layer or a convolution that is given these codes, in fp64."""
    with torch.autocast(inputs.codes.device.type, enabled=False):
        weights_GOK = rows(layer, weight.codes)
        columns_GKN = columns(layer, inputs.codes)
        if input_channels is None:
            sums = accumulate(weights_GOK, columns_GKN, array).double() * inputs.step.double()
        else:
            steps_GC = inputs.step.view(weights_GOK.shape[0], -1)
            sums = accumulate_by_channel(weights_GOK, columns_GKN, steps_GC, array)
        result = placed(layer, sums, inputs.codes)
        if inputs.offset is not None:
            result = result + _of_offset(layer, weights_GOK, inputs, input_channels)
        result = result * _beside_outputs(layer, weight.step.double())
        if layer.bias is not None:
            result = result + _beside_outputs(layer, layer.bias.double())
        # Row-major, as the plain layer's: kernels that follow may add in another order otherwise.
        return result.contiguous()


def rows(layer: Any, codes: Tensor) -> Tensor:
    """The weights of each output in their order, [G, O, K]."""
    if isinstance(layer, Convolution):
        return codes.reshape(layer.groups, codes.shape[0] // layer.groups, -1)
    # GPT-2's has inputs before outputs.
    return (codes if isinstance(layer, nn.Linear) else codes.t()).unsqueeze(0)


def columns(layer: Any, values: Tensor) -> Tensor:
    """What each output is multiplied from, [G, K, B * P]."""
    if not isinstance(layer, Convolution):
        return values.reshape(-1, values.shape[-1]).t().unsqueeze(0)
    padded = _as_image(_padded(layer, values))
    kernel, dilation, stride = (_as_pair(layer, size) for size in (layer.kernel_size, layer.dilation, layer.stride))
    patches = F.unfold(padded, kernel, dilation, stride=stride)
    split = patches.view(patches.shape[0], layer.groups, patches.shape[1] // layer.groups, patches.shape[2])
    return split.permute(1, 2, 0, 3).flatten(2)


def placed(layer: Any, sums: Tensor, values: Tensor) -> Tensor:
    """[G, O, B * P] as what leaves the layer when these values enter."""
    if not isinstance(layer, Convolution):
        return sums[0].t().reshape(*values.shape[:-1], sums.shape[1])
    sizes = _padded(layer, values[:1]).shape[2:]
    wide = zip(sizes, layer.kernel_size, layer.dilation, layer.stride, strict=True)
    places = [(size - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, dilation, stride in wide]
    return sums.reshape(layer.out_channels, values.shape[0], *places).transpose(0, 1)


def _of_offset(layer: Any, weights_GOK: Tensor, inputs: Coded, channels: Channels | None) -> Tensor:
    """Of one sample whose values are all the offset, without the weights' steps."""
    assert inputs.offset is not None
    one = inputs.codes[:1] if isinstance(layer, Convolution) else inputs.codes.flatten(0, -2)[0]
    spread = beside(inputs.offset, one, channels).double().expand(one.shape)
    return placed(layer, weights_GOK.double() @ columns(layer, spread), one)


def _beside_outputs(layer: Any, of_channels: Tensor) -> Tensor:
    """One number, or one for each channel that leaves, in a shape that goes with what leaves."""
    spatial = len(layer.kernel_size) if isinstance(layer, Convolution) else 0
    return of_channels.view(-1, *[1] * spatial) if of_channels.dim() else of_channels


def _padded(layer: Convolution, values: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(values, layer._reversed_padding_repeated_twice, mode=mode)


def _as_image(values: Tensor) -> Tensor:
    """A row of a convolution along one axis as an image of one row."""
    return values.unsqueeze(2) if values.dim() == 3 else values


def _as_pair(layer: Convolution, sizes: tuple[int, ...]) -> tuple[int, int]:
    return (1, sizes[0]) if isinstance(layer, nn.Conv1d) else (sizes[0], sizes[1])
