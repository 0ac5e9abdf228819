"""The candidates that serve a norm on a GPU.

All save the same tensors, so that one may serve the forward and another the backward.
"""

from . import kernels

__all__ = ["CANDIDATES"]

CANDIDATES = kernels.CANDIDATES
