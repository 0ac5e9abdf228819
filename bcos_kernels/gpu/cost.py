"""The cost model: predicts how long kernels take on a GPU, without measuring.

A kernel takes the longest of three times: its traffic ÷ the memory's rate, its FLOP ÷ the arithmetic's rate, and its
instructions ÷ the rate at which instructions are issued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

__all__ = ["LAUNCH", "Kernel", "Rates", "rates", "share"]

LAUNCH = 2.5e-6  # seconds between the ends of two small kernels of which one waits for the other


class Kernel(NamedTuple):
    """The work of one kernel."""

    bytes: float
    flops: float = 0.0
    own: bool = True
    """Whether the product is our own; else it is the vendor's."""
    instructions: float = 0.0
    """The instructions of all threads together."""


class Rates(NamedTuple):
    """The bytes, FLOP and instructions that a GPU reaches per second."""

    bytes: float
    half: float
    """FLOP of products in half precision."""
    tf32: float
    fp32: float
    fp64: float
    instructions: float

    def products(self, dtype: torch.dtype, tf32: bool) -> float:
        """The FLOP per second of products in a dtype; ``tf32`` says whether those of fp32 round their operands."""
        if dtype in (torch.float64, torch.float32):
            return self.fp64 if dtype == torch.float64 else self.tf32 if tf32 else self.fp32
        return self.half

    def seconds(self, kernel: Kernel, products: float) -> float:
        """The seconds of one kernel, including its start; its products run at ``products`` FLOP per second."""
        times = kernel.bytes / self.bytes, kernel.flops / products, kernel.instructions / self.instructions
        return LAUNCH + max(times)


_RATES = {
    "sm_80": Rates(1.7e12, 260e12, 130e12, 17e12, 17e12, 19e12),
    "sm_90": Rates(4.3e12, 790e12, 390e12, 50e12, 55e12, 30e12),
    "sm_100": Rates(7.0e12, 1700e12, 850e12, 70e12, 33e12, 36e12),
    "gfx942": Rates(4.3e12, 900e12, 450e12, 80e12, 80e12, 41e12),
}
"""Architecture -> rates that are assumed to be reachable."""
USUAL = "sm_90"
_LIKE = {"sm_8": "sm_80", "sm_12": "sm_80", "sm_10": "sm_100", "sm_11": "sm_100", "gfx": "gfx942"}
"""How the names of unlisted architectures begin -> the listed one that multiplies and copies as they do."""


def _listed(arch: str) -> str:
    """The listed architecture whose numbers stand for those of ``arch``."""
    return arch if arch in _RATES else next((like for begin, like in _LIKE.items() if arch.startswith(begin)), USUAL)


def rates(arch: str) -> Rates:
    """The rates of an architecture such as ``sm_90``."""
    return _RATES[_listed(arch)]


def share(shares: Mapping[str, float], arch: str) -> float:
    """What kernels reach of the vendor's rate, of the ``shares`` of listed architectures; 1 if there are none."""
    return shares.get(_listed(arch), shares.get(USUAL, 1.0))
