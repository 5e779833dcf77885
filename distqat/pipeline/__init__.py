"""Flow A: a microbatch to the loss and back. Its files in the order in which data meets them:

route      the chain of experts of a pipeline, and how a break of it is named       pure
split      a batch into microbatches                                                pure
schedule   which microbatch a stage works on next (1F1B), and how many are under way pure
standing   what an expert remembers from route to route: every step exactly once     pure
messages   what neighbours say to each other, as bytes
hop        the stream between neighbours, in whole messages
watch      notices a neighbour that owes an answer and stays silent
below      the rest of a route, as whoever stands above it sees it
link       the trainer's end of a route
worker     what an expert does for one open route
service    the side that answers: takes a route, displaces the one before
"""
