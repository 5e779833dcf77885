"""Answers a bench: a question is one line of JSON, [method, arguments], and so is an answer."""

from __future__ import annotations

import json
import os
import sys


def answer(answering: object) -> None:
    """Call methods of the object as they are asked for, until standard input ends.

    What a method raises ends the process, and the bench shows it. Standard output belongs to the answers: what
    libraries and child processes print there goes to standard error.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            method, arguments = json.loads(line)
            print(json.dumps(getattr(answering, method)(*arguments)), file=answers, flush=True)
