"""The cost model: predicts how long kernels take on a GPU, without measuring.

A kernel takes the longest of three times: its traffic ÷ the memory's rate, its FLOP ÷ the arithmetic's rate, and its
instructions ÷ the rate at which instructions are issued.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["LAUNCH", "Kernel", "Rates", "rates"]

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
"""The architecture whose rates stand for those of one that is not listed."""


def rates(arch: str) -> Rates:
    """The rates of an architecture such as ``sm_90``."""
    return _RATES.get(arch, _RATES[USUAL])
