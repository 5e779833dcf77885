"""Flow B: a pseudo-gradient through an outer round. Its files in the order in which data meets them:

    group       the words of a round: who joins, the group, the vote, the verdict         pure
    phases      how each round is taken: plainly or by DiLoCo, which fragments, when      pure
    merging     how a round that steps go on beside meets the local values                pure
    outer       local parameters to a pseudo-gradient, an average to the next anchor      pure
    waits       how long each part of a round may take; all derived from `sync.max_wait`  pure
    rendezvous  which sibling leads a round                                               pure
    form        who is in a round, and when it starts                                     pure
    slices      which member adds which elements                                          pure
    reduce      the weighted mean of one part of a slice                                  pure
    vote        whether an attempt commits, and who is to blame if not                    pure
    messages    what siblings say to each other, as bytes
    context     who an expert is among its siblings, and how it reaches them
    member      joining a leader, inviting a sibling, voting
    lobby       the siblings that wait at this one for a round to form
    effort      what one way to a committed round knows
    guests      the siblings that a forming round invites
    ballot      the votes of one attempt, and its verdict
    leader      forms a group
    attempt     what the streams of one attempt share at one member
    owner       adds the contributions to its slice, chunk by chunk
    exchange    two shots: slices to their owners, averaged slices back
    kept        committed averages, kept for siblings that missed their rounds            pure
    state/      committed state on its way: manifest, chunks, donors
    catchup     what a sibling that is behind, or new, comes to
    committed   the outer state and the receipts
    pursuit     the way to one committed round: attempt after attempt
    averager    the object that the expert role owns
    service     the side that answers
"""
