"""The local state of a stage as it travels: its tensors one behind the other, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import xxhash
from torch import Tensor

from distqat.averaging.spans import Shape
from distqat.errors import MessageError
from distqat.ids import StepRef
from distqat.model.local import LocalState
from distqat.wire import tensors
from distqat.wire.payload import Payload
from distqat.wire.tensors import TensorHeader

RESIDUAL, MOMENTUM = "residual/", "momentum/"
"""Before the number of the fragment: names of what is carried, behind those of the local state."""


@dataclass(frozen=True)
class CopyManifest:
    """What a copy is of; both sides hold the same stage, so names and shapes need not travel."""

    step: int
    digest: str
    """Of the committed state at which the values began."""
    samples: tuple[int, ...]
    """By fragment: what its values stand for beyond that state."""
    steps: int
    """Since the last round began."""
    layout: str
    origins: tuple[StepRef, ...] = ()
    """Up to which step of which pipeline the samples go."""
    is_ordered: bool = False
    """A round was to begin before the next step."""
    residuals: tuple[int, ...] = ()
    """Fragments of which there are some."""
    momenta: tuple[int, ...] = ()
    share: float = 0.0


@dataclass(frozen=True, eq=False)
class Carried:
    """What one round of a sibling hands on to its next; only its heir goes on with it."""

    residuals: Mapping[int, Tensor] = field(default_factory=dict)
    """Of error feedback: by fragment [its num_elements]."""
    momenta: Mapping[int, Tensor] = field(default_factory=dict)
    """Eager: of own contributions, by fragment [its num_parameters]."""
    share: float = 0.0
    """Of own samples in the last round."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name, as they travel."""
        residuals = {f"{RESIDUAL}{fragment}": held for fragment, held in sorted(self.residuals.items())}
        return residuals | {f"{MOMENTUM}{fragment}": held for fragment, held in sorted(self.momenta.items())}


@dataclass(frozen=True, eq=False)
class Copy:
    """A local state, and what it stands for."""

    state: LocalState
    digest: str
    samples: tuple[int, ...]
    steps: int
    origins: tuple[StepRef, ...] = ()
    is_ordered: bool = False
    carried: Carried = Carried()

    def __repr__(self) -> str:
        return f"<Copy of step {self.state.version}, {self.state.nbytes} bytes>"


class Layout:
    """Names, types and shapes of a stage's local state: what a copy of it has to be."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.headers: Sequence[TensorHeader] = tensors.encode(state)[0]
        self.nbytes = sum(header.bytes for header in self.headers)
        words = (f"{header.name} {header.dtype} {header.shape}" for header in self.headers)
        self.digest = xxhash.xxh3_128_hexdigest("\n".join(words).encode())

    def __repr__(self) -> str:
        return f"<Layout of {len(self.headers)} tensors, {self.nbytes} bytes>"

    def check(self, manifest: CopyManifest, shapes: Sequence[Shape]) -> Sequence[TensorHeader]:
        """All tensors that come. Raises MessageError unless it is of a stage like this one, whose fragments have these
        shapes: nothing is allocated before."""
        fragments = len(shapes)
        if manifest.layout != self.digest:
            raise MessageError("the copy is of another stage, or of another optimizer")
        if len(manifest.samples) != fragments:
            raise MessageError(f"a copy of {len(manifest.samples)} fragments where {fragments} were expected")
        if not 0.0 <= manifest.share <= 1.0:  # Nor is what is no number.
            raise MessageError(f"a copy that says it brought {manifest.share} of a round's samples")
        for numbers in (manifest.residuals, manifest.momenta):
            if list(numbers) != sorted(set(numbers)) or not all(number < fragments for number in numbers):
                raise MessageError(f"a copy that carries something of fragments {numbers}, of {fragments}")
        residuals = [_flat(f"{RESIDUAL}{number}", shapes[number].num_elements) for number in manifest.residuals]
        momenta = [_flat(f"{MOMENTUM}{number}", shapes[number].num_parameters) for number in manifest.momenta]
        return (*self.headers, *residuals, *momenta)


def read(manifest: CopyManifest, headers: Sequence[TensorHeader], payload: memoryview) -> Copy:
    """The copy whose tensors are in this payload. Raises MessageError."""
    found = tensors.decode(headers, payload)
    residuals = {number: found.pop(f"{RESIDUAL}{number}") for number in manifest.residuals}
    momenta = {number: found.pop(f"{MOMENTUM}{number}") for number in manifest.momenta}
    carried = Carried(residuals, momenta, manifest.share)
    state, is_ordered = LocalState(manifest.step, found), manifest.is_ordered
    return Copy(state, manifest.digest, manifest.samples, manifest.steps, manifest.origins, is_ordered, carried)


def _flat(name: str, length: int) -> TensorHeader:
    return TensorHeader(name, "float32", (length,), tensors.EXACT, 4 * length)


def describe(copy: Copy) -> tuple[CopyManifest, Payload]:
    """What a copy is, and its bytes, where they lie."""
    layout, carried = Layout(copy.state.tensors), copy.carried
    manifest = CopyManifest(
        step=copy.state.version,
        digest=copy.digest,
        samples=copy.samples,
        steps=copy.steps,
        layout=layout.digest,
        origins=copy.origins,
        is_ordered=copy.is_ordered,
        residuals=tuple(sorted(carried.residuals)),
        momenta=tuple(sorted(carried.momenta)),
        share=carried.share,
    )
    return manifest, tensors.encode({**copy.state.tensors, **carried.tensors})[1]
