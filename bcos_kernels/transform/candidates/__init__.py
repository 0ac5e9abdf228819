"""The ways to serve a transform on a GPU, in the order of preference among equals.

All take images in NHWC and keep the same tensors for the backward, so that any of them may serve it.
"""

from . import one_pass, semi, vendor

__all__ = ["CANDIDATES"]

CANDIDATES = (*one_pass.CANDIDATES, *semi.CANDIDATES, *vendor.CANDIDATES)
