"""In which precision a stage computes: fp32, or bf16 and fp16 by torch's autocast.

Parameters, their gradients, running statistics and the optimizer are fp32 always, and so is the loss. What one block
hands to the next is in the compute type, whether a cut lies between them or not: so a cut changes no bit, and halves
the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from distqat.model.quant.layers import QuantisedLayer
from distqat.sections import Precision

_TYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_type(precision: Precision) -> torch.dtype:
    """The element type of what passes between two blocks."""
    return _TYPES[precision]


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Within, each operation runs in the type that autocast's lists give it."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=_TYPES[precision])


class Casts:
    """The weights in the compute type, made once for each step.

    Autocast would make them anew for each forward, and each microbatch in flight would keep its own. Gradients pass
    through them to the fp32 parameters, where those of all microbatches add up.
    """

    def __init__(self, precision: Precision, blocks: Iterable[nn.Module]) -> None:
        self._type = compute_type(precision)
        low = precision != "fp32"
        self._parameters = [_cast_by_autocast(block) if low else {} for block in blocks]
        # By block; None until a step needs them.
        self._made: list[dict[str, Tensor] | None] = [None] * len(self._parameters)

    def of(self, number: int) -> dict[str, Tensor]:
        """Those of a block, by the names of the parameters in it; empty in fp32."""
        made = self._made[number]
        if made is None:
            # With their graph also when an evaluation is the first to need them.
            with torch.enable_grad():
                made = {name: parameter.to(self._type) for name, parameter in self._parameters[number].items()}
            self._made[number] = made
        return made

    def held(self) -> list[Tensor]:
        """All that there are now."""
        return [cast for own in self._made for cast in (own or {}).values()]

    def forget(self, number: int) -> None:
        """The parameters of that block change."""
        self._made[number] = None


def _cast_by_autocast(block: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of linear and convolutional layers; of others autocast's lists say fp32, or leave it to the kernel.

    Quantised layers round their weights in fp32, and so keep them.
    """
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, QuantisedLayer)
        for name, parameter in module.named_parameters(recurse=False)
    }


class Overflow:
    """Which blocks of a stage met a number beyond fp16 in the step that is under way.

    In fp16 that is no fault but the sign that the loss is scaled too far up. The number becomes zero, since codecs and
    peers refuse what is not finite, and the step is skipped in the end. The notes stay on the device: nobody waits for
    them before the step is complete.
    """

    def __init__(self, num_blocks: int, device: torch.device) -> None:
        self._notes = torch.zeros(num_blocks, dtype=torch.bool, device=device)

    def __repr__(self) -> str:
        return f"<Overflow {self.blocks()}>"

    def blocks(self) -> list[int]:
        """The numbers of those blocks."""
        return [number for number, is_noted in enumerate(self._notes.tolist()) if is_noted]

    def clear(self) -> None:
        """Another step begins."""
        self._notes.zero_()

    def note(self, number: int, tensor: Tensor) -> Tensor:
        """The tensor with zeros for what is NaN or infinite; notes block `number` if there was any."""
        # No sum of finite fp16 numbers leaves fp32.
        self._notes[number].logical_or_(~torch.isfinite(tensor.sum(dtype=torch.float32)))
        return quenched(tensor)


def quenched(tensor: Tensor) -> Tensor:
    """A copy with zeros for what is NaN or infinite."""
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0)
