"""From texts to a file of tokens, one behind the other, as uint8, uint16 or uint32.

Before them stands, as uint64 in little endian, how many bytes of text they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from distqat.data.sources.library.tables import expect_hub
from distqat.data.sources.splits import Array
from distqat.errors import DataError

BYTES = "bytes"
"""The tokenizer that is none: each byte is a token."""

_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Of a text, in tokenizers that have one of them."""

_HEAD = np.dtype("<u8")

_SMALL = 1 << 8
_MIDDLE = 1 << 16


@dataclass(frozen=True, eq=False)
class Packer:
    """What makes tokens of texts; `end` stands behind a text that does not end with a line break."""

    digest: str
    dtype: np.dtype[Any]
    encode: Callable[[list[str]], Iterable[Array]]
    end: Array

    @classmethod
    def open(cls, name: str, classes: int) -> Packer:
        """The tokenizer of that name, for a vocabulary of that size. Raises DataError when it does not fit."""
        if name == BYTES:
            return cls(BYTES, np.dtype(np.uint8), _encode_bytes, np.frombuffer(b"\n\n", np.uint8))
        tokenizer = _open_tokenizer(name)
        size = int(tokenizer.get_vocab_size())
        if size > classes:
            raise DataError(f"the tokenizer {name} has {size} tokens, dataset.classes says {classes}")
        dtype = np.dtype(np.uint8 if size <= _SMALL else np.uint16 if size <= _MIDDLE else np.uint32)
        tokenizer.no_truncation()
        tokenizer.no_padding()

        def encode(texts: list[str]) -> Iterable[Array]:
            for found in tokenizer.encode_batch(texts, add_special_tokens=False):
                yield np.array(found.ids, dtype)

        ends = [number for end in _ENDS if (number := tokenizer.token_to_id(end)) is not None]
        digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
        return cls(digest, dtype, encode, np.array(ends[:1], dtype))


class Packed(NamedTuple):
    """The tokens of a file, which stay there."""

    tokens: Array
    bytes_per_token: float
    """Of text, on average over the file; the end of a text is a token without bytes."""


def pack(texts: Iterable[list[str]], packer: Packer, file: BinaryIO) -> None:
    """Write the tokens of all texts to the beginning of a file."""
    num_bytes = 0
    file.write(_head(num_bytes))
    for some in texts:
        for text, tokens in zip(some, packer.encode(some), strict=True):
            num_bytes += len(_utf8(text))
            file.write(tokens.tobytes())
            if not text.endswith("\n"):
                file.write(packer.end.tobytes())
    file.seek(0)
    file.write(_head(num_bytes))


def read(path: Path, dtype: np.dtype[Any]) -> Packed:
    """What `pack` wrote."""
    with path.open("rb") as file:
        num_bytes = int(np.frombuffer(file.read(_HEAD.itemsize), _HEAD)[0])
    if path.stat().st_size == _HEAD.itemsize:
        return Packed(np.empty(0, dtype), 0.0)
    tokens = np.memmap(path, dtype, "r", _HEAD.itemsize)
    return Packed(tokens, num_bytes / len(tokens))


def _head(num_bytes: int) -> bytes:
    return np.array(num_bytes, _HEAD).tobytes()


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")


def _encode_bytes(texts: list[str]) -> Iterable[Array]:
    return (np.frombuffer(_utf8(text), np.uint8) for text in texts)


def _open_tokenizer(name: str) -> Any:
    """A `tokenizers.Tokenizer`, of a directory or of the hub. Raises DataError."""
    where = Path(name).expanduser()
    is_local = where.is_dir()
    if not is_local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise DataError(f"dataset.tokenizer: there is no folder {name} on this machine")
    if not is_local:
        expect_hub()
    try:
        if is_local and (where / "tokenizer.json").exists():
            from tokenizers import Tokenizer

            return Tokenizer.from_file(str(where / "tokenizer.json"))
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(where) if is_local else name, trust_remote_code=False)
    except ImportError as error:
        raise DataError(f"tokenizers come with a library: {error}; pip install 'distqat[models]'") from None
    except Exception as error:
        # A file that is broken: the library of tokenizers raises nothing more exact.
        raise DataError(f"cannot read the tokenizer {name}: {' '.join(str(error).split())[:400]}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"the tokenizer {name} has no tokenizer.json, and none can be made of what it has")
    return tokenizer.backend_tokenizer
