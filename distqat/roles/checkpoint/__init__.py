"""Checkpoints: what a swarm that was killed goes on from. Its files in the order in which data meets them:

words     what a peer says of a checkpoint that it holds                     pure
cadence   which states are checkpoints                                       pure
places    where checkpoints lie
files     a checkpoint as a folder: written so that it is whole or not there, and refused if it was changed
keeper    the checkpoints of one daemon: found at its start, written beside training, the oldest removed
saver     a stage between two steps, as it goes into a checkpoint, and comes out of it
vault     the checkpoints of an expert: which it is to load
archive   what a mirror gives
choice    from which checkpoints a swarm goes on, and with which steps       pure
collect   those of all stages that lie in some folders, read without a swarm
revival   the client's part: waits for the holders, rolls the books back, tells who loads what
"""
