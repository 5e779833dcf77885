"""Model families on the modules of the `transformers` library, which is imported by the family that is asked for only.

`library` is what they share: configs, first numbers and pretrained ones; `causal` the shape of a language model.
"""
