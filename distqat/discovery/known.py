"""Peers that once answered, kept on disk, so that a daemon finds its swarm again without an address."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from pathlib import Path

from distqat.errors import ConfigError
from distqat.ids import Endpoint

log = logging.getLogger(__name__)

MAX_KNOWN = 64


class KnownPeers:
    """Endpoints, the latest that answered first; without a path they are only kept in memory."""

    def __init__(self, path: Path | None = None, cap: int = MAX_KNOWN) -> None:
        self.path = path
        self.cap = cap
        self._endpoints: dict[Endpoint, None] = {}  # In the order in which they answered, the latest last.
        self._saved: list[Endpoint] = []  # What the file holds.

    def __repr__(self) -> str:
        return f"<KnownPeers {len(self._endpoints)}>"

    @property
    def endpoints(self) -> list[Endpoint]:
        """The latest that answered first."""
        return list(reversed(self._endpoints))

    def load(self) -> None:
        """Read the file; one that is missing or damaged is no reason to stay away."""
        if self.path is None:
            return
        try:
            listed = json.loads(self.path.read_text())["peers"]
            found = [Endpoint.parse(text) for text in listed[: self.cap]]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            log.warning("%s is damaged (%s); it will be written anew", self.path, error)
            return
        self._endpoints = dict.fromkeys(reversed(found)) | self._endpoints
        self._saved = found

    def seen(self, endpoint: Endpoint) -> None:
        """It has answered just now."""
        self._endpoints.pop(endpoint, None)
        self._endpoints[endpoint] = None
        while len(self._endpoints) > self.cap:
            del self._endpoints[next(iter(self._endpoints))]

    def others(self, known: Collection[Endpoint]) -> list[Endpoint]:
        """Those that are not among these, the latest first."""
        return [endpoint for endpoint in self.endpoints if endpoint not in known]

    def save(self) -> None:
        """Write the file, whole or not at all; only if something has changed."""
        listed = self.endpoints
        if self.path is None or set(listed) == set(self._saved):
            return
        scratch = self.path.with_suffix(f".{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps({"peers": [str(endpoint) for endpoint in listed]}, indent=1) + "\n")
            scratch.replace(self.path)
        except OSError as error:
            log.warning("cannot write %s: %s", self.path, error.strerror)
            return
        self._saved = listed
