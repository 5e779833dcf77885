"""The local state of a stage as it travels: its tensors one behind the other, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xxhash
from torch import Tensor

from distqat.errors import MessageError
from distqat.ids import StepRef
from distqat.model.local import LocalState
from distqat.wire import tensors
from distqat.wire.payload import Payload
from distqat.wire.tensors import TensorHeader


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


@dataclass(frozen=True, eq=False)
class Copy:
    """A local state, and what it stands for."""

    state: LocalState
    digest: str
    samples: tuple[int, ...]
    steps: int
    origins: tuple[StepRef, ...] = ()

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

    def check(self, manifest: CopyManifest, fragments: int) -> None:
        """Raises MessageError unless it is of a stage like this one: nothing is allocated before."""
        if manifest.layout != self.digest:
            raise MessageError("the copy is of another stage, or of another optimizer")
        if len(manifest.samples) != fragments:
            raise MessageError(f"a copy of {len(manifest.samples)} fragments where {fragments} were expected")

    def read(self, manifest: CopyManifest, payload: memoryview) -> Copy:
        """The copy whose tensors are in this payload. Raises MessageError."""
        found = tensors.decode(self.headers, payload)
        state = LocalState(manifest.step, found)
        return Copy(state, manifest.digest, manifest.samples, manifest.steps, manifest.origins)


def describe(copy: Copy) -> tuple[CopyManifest, Payload]:
    """What a copy is, and its bytes, where they lie."""
    layout = Layout(copy.state.tensors)
    manifest = CopyManifest(copy.state.version, copy.digest, copy.samples, copy.steps, layout.digest, copy.origins)
    return manifest, tensors.encode(copy.state.tensors)[1]
