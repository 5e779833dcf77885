"""What is fed: from a data set to the tensors of a batch, every sample once per epoch.

In the order in which data meets them: `sources` (a data set and its held-out part), `sampler` (the run's endless
order of samples), `intervals`, `claims` and `ledger` (who trains on which positions of that order), `service` and
`messages` (the ledger's answering side and its wire form), `client` (what a trainer sees: the seam), `metrics` and
`tasks` (what the outputs are worth). Only `tasks` imports torch.
"""
