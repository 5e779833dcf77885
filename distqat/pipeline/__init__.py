"""Flow A: a microbatch to the loss and back. Its files in the order in which data meets them:

route       the chain of experts of a pipeline, its limits, and how a break of it is named  pure
hop_codecs  which codec the tensors of a hop take                                           pure
words       what neighbours say to each other                                               pure
split       a batch into microbatches                                                       pure
tally       those microbatches as messages, and their outcomes added up again               pure
pace        how many may be under way, by measured times                                    pure
schedule    which one a stage works on next (1F1B)                                          pure
standing    what an expert remembers from route to route: every step exactly once           pure
messages    the words as bytes
hop         the stream between neighbours, in whole messages
freight     the tensors of a hop: encoded, decoded, measured
watch       notices a neighbour that owes an answer and stays silent
below       the rest of a route, as whoever stands above it sees it
link        the trainer's end of a route
host        in whose name a stage works
computing   what a stage computes for its route, on the device's thread
arrivals    what has come for a stage and is not worked on yet
worker      what an expert does for one open route
service     the side that answers: takes a route, displaces the one before
"""
