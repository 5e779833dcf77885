"""A trained model as files that others read. In the order in which it goes through:

values     the committed numbers of all stages into the uncut model
tensors    its tensors by the names that readers look for, whole numbers where layers are quantised
graph      the model as a `torch.export` program
"""
