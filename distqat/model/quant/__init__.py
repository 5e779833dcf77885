"""Layers that compute with rounded weights and inputs, and learn how to round.

In the order in which a run meets them: `rules` (which layers, which numbers), `plan` (the blocks of a model, to be
built so), `layers` (a layer with quantizers), `quantizers` (the modules that hold steps), `rounding` (forward and
gradients), `grid` (the integers).
"""
