"""The B-cos transform y = |cos(x, w)|^(b-1) · ŵᵀx of linear and convolutional layers, and everything that serves it."""

from ..core.candidate import REFERENCE
from . import candidates, cpu, cuda, triton
from .call import Call
from .op import TRANSFORM
from .spec import Inputs, Outputs, Spec

__all__ = ["TRANSFORM", "Call", "Inputs", "Outputs", "Spec"]

for _backend in (cpu.BACKEND, cuda.BACKEND, triton.BACKEND, REFERENCE):  # in the order of preference
    TRANSFORM.add_backend(_backend)
for _candidate in (*cpu.CANDIDATES, *candidates.CANDIDATES):
    TRANSFORM.add_candidate(_candidate)
