"""The daemon: `identity` (its key), `roster` (its roles at runtime), `control` (its answers about itself), `joining`
(how it learns the run), and `peer`, the one place where everything is put together.
"""
