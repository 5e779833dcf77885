"""What is computed: no network here, and no messages.

In the order in which a run meets them: `shapes` (what a sample looks like), `zoo` (a model as a list of blocks),
`partition` (blocks to stages), `build` (the own stage of a run), `rng` (every random number from the run's seed),
`stage` (forward, loss, backward, commit) with its parts `slice`, `boundary`, `precision`, `task`, `steps`, `stash` and
`gradients`, `agreement` and `terms` (how a step is applied in all stages alike), `rates` and `optimizer` (the inner
one), `layout`, `fragments` and `vectors` (its numbers, flat), `device` (the thread that computes), `state` (snapshots
and digests). `quant` makes the blocks of a plan compute with rounded numbers.
"""
