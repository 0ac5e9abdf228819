"""The norms between B-cos layers, centered or not, with the variance as a constant in the explanation mode."""

from ..core.candidate import REFERENCE
from . import cpu, cuda, triton
from .call import Call
from .op import NORM
from .spec import OVER, Inputs, Outputs, Spec

__all__ = ["NORM", "OVER", "Call", "Inputs", "Outputs", "Spec"]

for _backend in (cpu.BACKEND, cuda.BACKEND, triton.BACKEND, REFERENCE):  # in the order of preference
    NORM.add_backend(_backend)
for _candidate in (*cpu.CANDIDATES, *cuda.CANDIDATES, *triton.CANDIDATES):
    NORM.add_candidate(_candidate)
