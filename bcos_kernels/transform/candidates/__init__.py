"""The candidates that serve a transform on a GPU; of equally fast ones, the first is preferred.

All take images in NHWC and save the same tensors, so that one may serve the forward and another the backward.
"""

from . import graph, one_pass, sampled, semi, tma, vendor

__all__ = ["CANDIDATES"]

CANDIDATES = (
    *tma.CANDIDATES, *one_pass.CANDIDATES, *semi.CANDIDATES, *graph.CANDIDATES, *vendor.CANDIDATES, *sampled.CANDIDATES,
)  # fmt: skip
