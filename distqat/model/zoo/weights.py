"""A pretrained model's files: its config, and single tensors of it, read where they lie.

From a directory as `save_pretrained` writes it, or from the hub by name (`owner/name`, or `owner/name@revision`). Only
files that hold a wanted tensor are opened or fetched, and of these only the tensor's own bytes are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distqat.errors import ModelError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

READ_AS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types whose elements are the numbers themselves; those of others are codes, which say little without scales."""


class Checkpoint:
    """Pretrained tensors by name. Raises ModelError when they are not to be had."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._files: Mapping[str, str] | None = None  # File of each tensor; None until one is asked for.

    def __repr__(self) -> str:
        return f"<Checkpoint {self.where}>"

    def config(self) -> dict[str, Any]:
        """What `config.json` says."""
        path = self._find(CONFIG)
        if path is None:
            raise ModelError(f"pretrained model '{self.where}' has no {CONFIG}")
        return self._json(path)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._where()

    def read(self, name: str) -> Tensor:
        """That tensor as fp32, on the CPU; one of integers or of 8 bits is refused."""
        file = self._where().get(name)
        path = self._find(file) if file is not None else None
        if path is None:
            raise ModelError(f"pretrained model '{self.where}' has no tensor '{name}'")
        try:
            with safe_open(path, "pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        if tensor.dtype not in READ_AS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"tensor '{name}' of {path} is of {kind}: a quantised checkpoint cannot be gone on with")
        return tensor.to(torch.float32)

    def _where(self) -> Mapping[str, str]:
        if self._files is None:
            self._files = self._list()
        return self._files

    def _list(self) -> Mapping[str, str]:
        index = self._find(INDEX)
        if index is not None:
            files: dict[str, str] = self._json(index).get("weight_map", {})
            return files
        single = self._find(SINGLE)
        if single is None:
            raise ModelError(
                f"pretrained model '{self.where}' has neither {SINGLE} nor {INDEX}; "
                "write it anew with `save_pretrained`, which makes one of them"
            )
        try:
            with safe_open(single, "pt") as opened:
                return dict.fromkeys(opened.keys(), SINGLE)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{single} cannot be read: {error}") from None

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            read: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from None
        return read

    def _find(self, file: str) -> Path | None:
        """Where that file lies; None when the model has no such file."""
        if Path(self.where).is_dir():
            path = Path(self.where, file)
            return path if path.is_file() else None
        return _fetch(self.where, file)


def _fetch(where: str, file: str) -> Path | None:
    """From the hub, or from what was fetched before."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = where.partition("@")
    try:
        return Path(hf_hub_download(name, file, revision=revision or None))
    except LocalEntryNotFoundError:
        raise ModelError(f"pretrained model '{where}' is no directory here, and the hub cannot be reached") from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"pretrained model '{where}' is no directory here, and not on the hub: {error}") from None
