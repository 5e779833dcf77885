"""Committed state on its way from those that hold it to one that lacks it. In the order of that way:

snapshot  a state as parts, chunks and their hashes                     pure
haul      which donor gives which chunk next                            pure
messages  what askers and donors say to each other
donor     the side that answers: manifests, chunks, kept averages
hoard     what an asker has of a state, chunk by chunk
pull      chunks from several donors at once
replay    the averages of rounds that were missed, from one donor
"""
