"""What distqat reaches on this machine, beside a peer that is measured in the same run.

    case      one line of the output: medians, ratio, goal
    table     lines as the tables of docs/benchmarks.md
    workers   processes that measure together
    machines  machines behind slow links: network namespaces
    gauge     what a run of processes has cost
    hivemind  the peer: an environment of its own, made when it is needed, and scripts in it (bench/peers)
    recipes   models and their batches; whole, ours and chain train them: in one process, as a pipeline, with hivemind
    start     commands and daemons until they answer
    wire      every codec, on one core
    stream    tensors and small calls between two processes
    transfer  committed state from one expert to another
    pipeline  models in two and three stages beside one process and beside hivemind; heavy: bytes of a large one
    links     the same over slow links
    curve     what rounding on the wire costs in learning
    boundary  what boundaries cost that are trained to be sent in few bits
    newcomer  what a newcomer's cold optimizer costs
    failover  what the loss of an expert costs: recovery, regroup, restored
    overhead  what staying alive costs while nothing fails
    overlap   steps beside outer rounds
    round     one outer round of siblings; killed: with one that dies; roundlines: what is to be reached
              group, sibling, timed, memory, runs: ours; averagers: hivemind's
    diloco    what DiLoCo costs in learning and saves in bytes; plot: the same as a picture
              arms, learner, replicas, results: what is compared, who trains, real rounds in one process, what is kept
    ramp      what a gentle beginning is worth in short runs

Run `python -m bench [NAME] [--quick]`; each case is one JSON object on one line.
"""
