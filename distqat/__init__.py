"""distqat: a peer daemon with which a swarm trains one model that none of its machines holds alone."""

__version__ = "0.1.0"
