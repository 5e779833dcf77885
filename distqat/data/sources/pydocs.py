"""The documentation that comes with Python, as bytes: the help topics and the docstrings of the standard library.

Real English and code, 0.85 MB, on every machine without a download. The text depends on the version of
Python, so peers of one run should have the same one.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distqat.config import RunConfig
from distqat.data.sources.splits import Source, SourceShape, WindowSplit
from distqat.errors import DataError
from distqat.model.shapes import DataShape

HELD_OUT = 0.1
"""Part of the bytes, in whole documents, that is never trained on."""

SOURCE_LIMIT = 2_000_000
"""Bytes of library source that are searched for docstrings, a second's work; they hold about 0.4 MB of them."""

_CLASSES = 256
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
_BETWEEN = b"\n\n"


def shape(config: RunConfig) -> SourceShape:
    """Windows of `data.sequence` bytes."""
    return SourceShape("llm", DataShape("tokens", (config.data.sequence,), _CLASSES))


def load(config: RunConfig) -> Source:
    """Windows of `data.sequence` bytes: inputs and labels int64 [n, T]. Raises DataError."""
    train, rest = (np.frombuffer(_BETWEEN.join(texts), np.uint8) for texts in split(documents()))
    sequence = config.data.sequence
    return Source("pydocs", *shape(config), WindowSplit(train, sequence), WindowSplit(rest, sequence))


def documents() -> list[bytes]:
    """Every document once, in an order that does not depend on the machine: by the hash of its text."""
    texts = {hashlib.sha256(text).digest(): text for text in (*_topics(), *_docstrings())}
    return [texts[key] for key in sorted(texts)]


def split(texts: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The first documents for training; the last, with a tenth of the bytes, held out."""
    left = sum(map(len, texts)) * (1 - HELD_OUT)
    for place, text in enumerate(texts):
        left -= len(text)
        if left < 0:
            return texts[:place], texts[place:]
    return texts, []


def _topics() -> Iterator[bytes]:
    # Imported here: only who trains on it needs its half megabyte.
    from pydoc_data import topics  # type: ignore[import-untyped, unused-ignore]

    for _, text in sorted(topics.topics.items()):
        yield text.strip().encode()


def _docstrings() -> Iterator[bytes]:
    """One document for each module: its docstrings, one behind the other."""
    left = SOURCE_LIMIT
    for file in _modules(Path(sysconfig.get_path("stdlib"))):
        try:
            source = file.read_bytes()
            tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            continue  # Some files of the library are broken on purpose.
        left -= len(source)
        if left < 0:
            return
        texts = list(_docstrings_of(tree))
        if texts:
            yield "\n\n".join(texts).encode(errors="replace")


def _docstrings_of(tree: ast.Module) -> Iterator[str]:
    todo: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while todo:
        node = todo.pop()
        text = ast.get_docstring(node)
        if text:
            yield text
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        todo += [child for child in reversed(node.body) if isinstance(child, kinds)]


def _modules(library: Path) -> list[Path]:
    """The library's files that are read, modules at its top first."""
    found: list[Path] = []
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith("config-")]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    if not found:
        raise DataError(f"the sources of the standard library are not in {library}")
    return sorted(found, key=lambda file: (len(file.parts), file.relative_to(library).as_posix()))
