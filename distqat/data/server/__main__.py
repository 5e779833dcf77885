"""`python -m distqat.data.server FD`: the data server, told what to do over that socket (`keeper.py`)."""

from __future__ import annotations

import socket
import sys

from distqat.data.server.process import main

if __name__ == "__main__":
    sys.exit(main(socket.socket(fileno=int(sys.argv[1]))))
