"""Flow B: a pseudo-gradient through an outer round. Its files in the order in which data meets them:

the words and the numbers
  group         the words of a round: who joins, the group, the vote, the verdict         pure
  phases        how each round is taken: plainly or by DiLoCo, which fragments, when      pure
  merging       how a round that steps go on beside meets the local values                pure
  outer         local parameters to a pseudo-gradient, an average to the next anchor      pure
  spans         where the elements of a round's vector come from                          pure
  contribution  what a sibling puts into a round, what comes out of it
  feedback      what a lossy codec loses goes into the next round

the protocol
  waits         how long each part of a round may take; all derived from `sync.max_wait`  pure
  rendezvous    which sibling leads a round                                               pure
  quorum        who decides about a round                                                 pure
  doubts        what became of an attempt whose verdict was not heard                     pure
  discipline    whose contributions are held back, and for how long                       pure
  company       what a sibling knows of the others                                        pure
  form          who is in a round, and when it starts                                     pure
  terms         codec of a group, and whose contributions are scaled down or not taken    pure
  vote          whether an attempt commits, and who is to blame if not                    pure
  events        what happens to a sibling, and what it does about it                      pure
  way           where a sibling is, and the steps that leader and member share            pure
  guests        what others want of it                                                    pure
  leader        gathering a group, counting its votes                                     pure
  member        waiting, averaging, voting                                                pure
  round         all of that as a table                                                    pure

the exchange
  slices        which member adds which elements                                          pure
  reduce        the weighted mean of one part of a slice                                  pure
  messages      what siblings say to each other, as bytes
  context       who an expert is among its siblings, and how it reaches them
  blame         how an attempt fails, and because of whom                                 pure
  attempt       what the streams of one attempt share at one member
  owner         adds the contributions to its slice, chunk by chunk
  exchange      two shots: slices to their owners, averaged slices back

the state
  kept          committed averages, kept for siblings that missed their rounds            pure
  state/        committed state on its way: manifest, chunks, donors
  catchup       what a sibling that is behind, or new, comes to
  committed     the outer state, the receipts, the averages of the latest rounds

the shell
  calls         what a sibling asks of others
  presence      whether one that is waited for still answers
  vigil         rings those for want of whom a round has failed, while training goes on
  lobby         the siblings that wait at this one, for a group or a verdict
  effort        the vectors of one way to a committed round
  pursuit       does what `round` says
  averager      the object that the expert role owns
  service       the side that answers
"""
