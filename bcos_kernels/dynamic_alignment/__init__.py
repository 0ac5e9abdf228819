"""Convolutions of dynamic alignment units (CoDA-Nets), whose weights are made of the patch that they are applied to."""

from ..core.candidate import REFERENCE
from . import cpu, cuda, tiled, triton
from .call import Call
from .op import DYNAMIC_ALIGNMENT
from .spec import NORMS, Inputs, Outputs, Spec

__all__ = ["DYNAMIC_ALIGNMENT", "NORMS", "Call", "Inputs", "Outputs", "Spec"]

for _backend in (cpu.BACKEND, cuda.BACKEND, triton.BACKEND, tiled.BACKEND, REFERENCE):  # in the order of preference
    DYNAMIC_ALIGNMENT.add_backend(_backend)
for _candidate in (*cpu.CANDIDATES, *cuda.CANDIDATES, *triton.CANDIDATES, *tiled.CANDIDATES):
    DYNAMIC_ALIGNMENT.add_candidate(_candidate)
