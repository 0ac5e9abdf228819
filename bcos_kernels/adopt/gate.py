"""Reads a published gated activation at every call: x · g(x), whose gate g(x) is a constant in explanation mode.

PyTorch's own GELU or SiLU forms the product in one pass, and x alone is kept for the backward. On the CPU its GELUs
have in fp32 more than the published code's error where x is mostly negative; there its error function serves, or its
sigmoid in place of a tanh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import _torch
from ..core.extension import DTYPES
from . import fingerprint, published
from .kind import Kind
from .published import Code, Theirs

__all__ = [
    "ACT", "FUNCTIONS", "KIND", "METHOD", "Found", "Variant", "find", "is_candidate", "is_served", "run",
]  # fmt: skip

MODE = "dynamic_multiplication"

ACT, METHOD = "act", "_gelu_python"
"""The attribute in which the language models' gate holds the method that it calls, and the name of that method."""


class Function(NamedTuple):
    """x · g(x) and what its derivatives are made of."""

    value: Callable[[Tensor], Tensor]
    """x · g(x), of which autograd knows the derivatives unless ``inexact``."""
    backward: Callable[[Tensor, Tensor], Tensor]
    """``backward(grad, x)``: the gradient at x, of which autograd knows the derivatives."""
    gate: Callable[[Tensor], Tensor]
    """g(x), of which autograd knows the derivatives."""
    frozen: Callable[[Tensor, Tensor], Tensor]
    """``frozen(grad, x)``: grad · g(x), in the memory of one new tensor; without derivatives."""
    inexact: Callable[[Tensor], bool] = lambda x: False
    """Whether PyTorch's own activation is less exact than the published code, so that another stands in its place."""


def _phi(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def _times_phi(grad: Tensor, x: Tensor) -> Tensor:
    gate = torch.mul(x, math.sqrt(0.5)).erf_()
    return torch.addcmul(grad, grad, gate, out=gate).mul_(0.5)


def _is_inexact(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.device.type == "cpu"


def _gelu(x: Tensor) -> Tensor:
    return _times_phi(x, x) if _is_inexact(x) else F.gelu(x)


def _of_gelu(grad: Tensor, x: Tensor) -> Tensor:
    if not _is_inexact(x):
        return torch.ops.aten.gelu_backward(grad, x)
    density = math.sqrt(2 / math.pi)  # twice that of the normal distribution at 0
    if torch.is_grad_enabled() or _torch.is_seen((x, grad)):
        return grad * (_phi(x) + 0.5 * density * x * torch.exp(-0.5 * x * x))
    rest = torch.mul(x, x).mul_(-0.5).exp_()
    slope = torch.mul(x, math.sqrt(0.5)).erf_().add_(1)  # exact where Φ(x) is small, before anything else is added
    return slope.addcmul_(x, rest, value=density).mul_(grad).mul_(0.5)


_LINEAR, _CUBIC = 2 * math.sqrt(2 / math.pi), 2 * 0.044715 * math.sqrt(2 / math.pi)
"""½(1 + tanh a) is σ(2a), which does not cancel where tanh a is nearly -1; 2a = ``_LINEAR`` · x + ``_CUBIC`` · x³."""


def _phi_by_tanh(x: Tensor) -> Tensor:
    return torch.sigmoid((_LINEAR + _CUBIC * x * x) * x)


def _times_phi_by_tanh(grad: Tensor, x: Tensor) -> Tensor:
    return torch.mul(x, x).mul_(_CUBIC).add_(_LINEAR).mul_(x).sigmoid_().mul_(grad)


def _gelu_by_tanh(x: Tensor) -> Tensor:
    return _times_phi_by_tanh(x, x) if _is_inexact(x) else F.gelu(x, approximate="tanh")


def _of_gelu_by_tanh(grad: Tensor, x: Tensor) -> Tensor:
    if not _is_inexact(x):
        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    if torch.is_grad_enabled() or _torch.is_seen((x, grad)):
        gate, closed = _phi_by_tanh(x), _phi_by_tanh(-x)  # 1 - gate cancels where the gate is nearly open
        return grad * (gate + x * gate * closed * (_LINEAR + 3 * _CUBIC * x * x))
    square = torch.mul(x, x)
    gate = torch.mul(square, _CUBIC).add_(_LINEAR).mul_(x)
    closed = torch.neg(gate).sigmoid_()
    gate.sigmoid_()
    rest = closed.mul_(gate).mul_(x).mul_(square.mul_(3 * _CUBIC).add_(_LINEAR))
    return rest.add_(gate).mul_(grad)


def _of_silu(grad: Tensor, x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() or _torch.is_seen((x, grad))):
        return torch.ops.aten.silu_backward(grad, x)
    gate = torch.sigmoid(x)
    return grad * gate * (1 + x * (1 - gate))


FUNCTIONS = {
    "gelu": Function(_gelu, _of_gelu, _phi, _times_phi, _is_inexact),
    "gelu by tanh": Function(_gelu_by_tanh, _of_gelu_by_tanh, _phi_by_tanh, _times_phi_by_tanh, _is_inexact),
    "silu": Function(F.silu, _of_silu, torch.sigmoid, lambda grad, x: torch.sigmoid(x).mul_(grad)),
}
"""The activations: x · Φ(x), the same with a tanh in place of Φ's error function, and x · σ(x)."""


@dataclass(frozen=True)
class Variant:
    """One of the published formulas."""

    mode: str
    """The explanation mode: ``"early"``, ``"late"``, or ``"none"`` where the code does not use the mode that it has."""
    held: bool
    """Whether the method that computes it is held in an attribute."""
    name: str = "gelu"
    """Which of ``FUNCTIONS`` it is."""


class Found(NamedTuple):
    """How one call is served."""

    variant: Variant
    frozen: bool
    """Whether the forward makes a constant of the gate, as in the early explanation mode."""
    state: MutableMapping | None
    """The late explanation mode."""


@published.reads_code(Code)
def read(reading: published.Reading, cls: type, mode: type) -> Code:
    """Forms the fingerprints of the two classes and looks them up in the table."""
    formula, gate = reading.known(cls, "gates")
    own = {name for _, name, _ in gate.methods} - {"forward"}
    reads, held = gate.reads, ACT in gate.reads
    if held:
        try:
            inner = fingerprint.of(published.published_mro(cls), (METHOD,))
        except fingerprint.Unreadable as error:
            raise published.Unknown(str(error), published.watched(cls, error)) from None
        reading.watched += published.watched(cls, inner)
        formula = published.rows("gates").get(inner.digest, {}).get("formula") or {}
        if not formula:
            raise published.Unknown(f"the code of {cls.__name__}.{METHOD} is not among the published gates")
        own, reads = own | {name for _, name, _ in inner.methods}, reads | inner.reads
    late = formula["mode"] != "early"
    if late:
        reading.mode(mode, MODE)
        own = own | {MODE}
    variant = Variant(formula["mode"], held, formula.get("function", "gelu"))
    return Code(variant, parts=(mode,) if late else (), own=frozenset(own), reads=reads, late=late)


def is_candidate(module: Theirs) -> bool:
    """Whether the module looks like a gate: an explanation mode, and no parameters and parts of its own beside it."""
    named = any(name in type(module).__name__.upper() for name in ("GELU", "SILU"))
    if module._parameters or module._buffers or not named or isinstance(module, torch.jit.ScriptModule):
        return False
    return set(module._modules) == {MODE} or ("detach" in vars(module) and not module._modules)


def _code(module: Theirs) -> Code:
    return published.code((type(module), type(module._modules.get(MODE))), read)


def _method(module: Theirs) -> Any:
    return getattr(type(module), METHOD)


def is_served(x: Tensor) -> bool:
    """Whether ``run`` takes the input: a dense tensor of a floating-point dtype."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype in DTYPES and x.layout == torch.strided


def find(module: Theirs, x: Tensor | None = None, backend: str | None = None) -> Found | str | None:
    """How a call is served; or the reason why the gate's own forward must run; None where it is the better one."""
    if x is not None and _torch.is_followed():
        return None
    code = _code(module)
    if isinstance(code.variant, str):
        return code.variant
    own, variant = vars(module), code.variant
    if (reason := published.assigned(module, code.own)) is not None:
        return reason
    if variant.held:
        held = own.get(ACT)
        if not (isinstance(held, MethodType) and held.__self__ is module and held.__func__ is _method(module)):
            return f"its {ACT} is not its own {METHOD}"
    if x is not None and not is_served(x):
        return f"its input is {x.dtype}, {x.layout}: a dense tensor of a floating-point dtype is needed"
    if variant.mode == "early":
        return Found(variant, bool(module.detach), None) if hasattr(module, "detach") else "it has lost its detach"
    reason = published.changed_parts(module) or published.changed_mode(module._modules[MODE], MODE)
    return reason or Found(variant, False, module._modules[MODE].state if variant.mode == "late" else None)


def run(module: Theirs, x: Tensor, found: Found, out_dtype=None, backend: str | None = None) -> Tensor:
    """``module(x)``, in the mode that the module has now."""
    variant, frozen, state = found
    function = FUNCTIONS[variant.name]
    if not (x.requires_grad and torch.is_grad_enabled()):
        return function.value(x)
    if frozen or state is not None:
        return _Gate.apply(x, state, function)
    return _Gate.apply(x, _NEVER, function) if function.inexact(x) else function.value(x)


_NEVER = {"fixed_weights": False}
"""The state of a late explanation mode that is never entered."""


class _Gate(torch.autograd.Function):
    """Without ``state`` the gate is a constant of every derivative."""

    @staticmethod
    def forward(ctx: Any, x, state, function):
        ctx.save_for_backward(x)
        ctx.state, ctx.function = state, function
        return function.value(x)

    @staticmethod
    def backward(ctx: Any, *grads):
        (grad,), (x,), function = grads, ctx.saved_tensors, ctx.function
        if ctx.state is not None and not ctx.state["fixed_weights"]:
            return function.backward(grad, x), None, None
        if torch.is_grad_enabled() or _torch.is_seen((x, grad)):
            return grad * function.gate(x.detach() if ctx.state is None else x), None, None
        return function.frozen(grad, x), None, None


KIND = Kind("gate", "gate", None, is_candidate, _code, find, run)
