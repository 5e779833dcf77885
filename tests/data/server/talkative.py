"""A data server whose source has something to log while it is opened."""

from __future__ import annotations

import logging
import socket
import sys

from distqat.config import RunConfig
from distqat.data.server.process import main
from distqat.data.sources import open_source
from distqat.data.sources.splits import Source


def open_aloud(config: RunConfig) -> Source:
    logging.getLogger("distqat.data.sources").debug("opens %s", config.data.source)
    return open_source(config)


if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1])), open_aloud))
