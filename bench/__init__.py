"""What distqat reaches on this machine, beside a peer that is measured in the same run.

    case      one line of the output: medians, ratio, goal
    workers   processes that measure together
    start     commands and daemons until they answer
    stream    tensors and small calls between two processes
    pipeline  a model in two stages against the same model in one process
    round     one outer round of siblings

Run `python -m bench [NAME] [--quick]`; each case is one JSON object on one line.
"""
