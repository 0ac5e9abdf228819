"""The cost model: how long kernels would take on a GPU; a prediction, not a measurement.

Each kernel takes the longest of its traffic over the memory's rate, its products over the arithmetic's rate and its
instructions over the rate at which they are issued.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LAUNCH", "Kernel", "Rates", "rates"]

LAUNCH = 2.5e-6  # seconds between the ends of two dependent small kernels


class Kernel(NamedTuple):
    """What one kernel moves and computes."""

    bytes: float
    flops: float = 0.0
    own: bool = True
    """Whether the product is ours; else the vendor's."""
    instructions: float = 0.0
    """Of all threads."""


class Rates(NamedTuple):
    """What a GPU reaches in a second."""

    bytes: float
    half: float
    """FLOP of products in half precision."""
    tf32: float
    fp32: float
    instructions: float

    def seconds(self, kernel: Kernel, products: float) -> float:
        """Of one kernel whose products run at the given rate, its start included."""
        times = kernel.bytes / self.bytes, kernel.flops / products, kernel.instructions / self.instructions
        return LAUNCH + max(times)


_RATES = {
    "sm_80": Rates(1.7e12, 260e12, 130e12, 17e12, 19e12),
    "sm_90": Rates(4.3e12, 790e12, 390e12, 50e12, 30e12),
    "sm_100": Rates(7.0e12, 1700e12, 850e12, 70e12, 36e12),
    "gfx942": Rates(4.3e12, 900e12, 450e12, 80e12, 41e12),
}
"""Assumed to be reachable."""
USUAL = "sm_90"
"""In place of an architecture that is not listed."""


def rates(arch: str) -> Rates:
    """Of an architecture, as ``sm_90``."""
    return _RATES.get(arch, _RATES[USUAL])
