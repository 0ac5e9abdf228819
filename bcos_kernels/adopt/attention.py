"""Reads a published attention at every call: its present values, and any reason why its own forward must run.

Its norm and its two layers are called as modules, with their hooks; what lies between them is computed here. The
attentions of ``bcos``, of B-cosification, of how-to-probe and of the repositories derived from model guidance hold the
same few things under the same names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import tally
from ..core import _torch
from ..core.checks import autocast_dtype
from ..core.extension import DTYPES
from . import attend, published
from .kind import Kind
from .published import Theirs

__all__ = ["KIND", "MODE", "find", "is_candidate", "run"]

MODE = "dyn_mul"
"""The attribute in which an attention holds its late explanation mode."""

PARTS = "norm", "to_qkv", "attend", "to_out"
"""The modules that every published attention calls, in their order."""


@dataclass(frozen=True)
class Variant:
    """One of the published formulas: softmax(scale · q kᵀ) v of each head, between two layers."""

    late: bool
    """Whether the backward decides about the explanation mode. Under autocast such code sums the weighted
    values in the dtype of the softmax, that of the early mode in autocast's."""


@dataclass(frozen=True, eq=False)
class Code(published.Code):
    """What the code of these classes together computes: the attention's, its softmax's and its explanation mode's."""

    inner: tuple[str, ...] = ()
    """The parts whose calls are not made any more: a hook on them has to see these calls."""
    splits: bool = False
    """Whether its ``to_qkv`` is PyTorch's plain linear layer, which can form the values alone."""


@published.reads_code(Code)
def read(reading: published.Reading, cls: type, softmax: type, mode: type, linear: type) -> Code:
    """Forms the fingerprints of the classes and looks them up in the table."""
    parts: tuple[type, ...] = (softmax,)
    inner: tuple[str, ...] = ("attend",)
    formula, attention = reading.known(cls, "attentions")
    if formula["late"]:
        reading.mode(mode, MODE)
        parts, inner = (*parts, mode), (*inner, MODE)
    if not issubclass(softmax, nn.Softmax):
        raise published.Unknown(f"its .attend is {softmax.__name__}, not nn.Softmax")
    reading.known(softmax, "linears", "attend")
    splits = linear is nn.Linear
    if splits:
        try:
            reading.known(linear, "linears", "to_qkv")
            parts = *parts, linear
        except published.Unknown as error:
            reading.watched, splits = reading.watched + error.watched, False
    return Code(
        Variant(formula["late"]),
        parts=parts,
        own=frozenset(name for _, name, _ in attention.methods) - {"forward"} | set(inner),
        reads=attention.reads,
        late=formula["late"],
        inner=inner,
        splits=splits,
    )


class Found(NamedTuple):
    """How one call is served."""

    variant: Variant
    heads: int
    scale: float
    frozen: bool
    """Whether the forward makes constants of the queries and keys, as in the early explanation mode."""
    state: MutableMapping | None
    """The late explanation mode."""
    splits: bool
    """Whether its ``to_qkv`` can form the values alone."""


def is_candidate(module: Theirs) -> bool:
    """Whether the module looks like an attention with an explanation mode."""
    parts = module._modules
    known = "to_qkv" in parts and "attend" in parts and ("detach" in vars(module) or MODE in parts)
    return known and not isinstance(module, torch.jit.ScriptModule)


def _code(module: Theirs) -> Code:
    parts = module._modules
    classes = type(parts.get("attend")), type(parts.get(MODE)), type(parts.get("to_qkv"))
    return published.code((type(module), *classes), read)


def find(module: Theirs, x: Tensor | None = None, backend: str | None = None) -> Found | str | None:
    """How a call is served; or the reason why the attention's own forward must run; None where it is the better one.

    A compiler fuses the attention's own operators, and a transform must see them.
    """
    if x is not None and _torch.is_followed():
        return None
    code = _code(module)
    if isinstance(code.variant, str):
        return code.variant
    parts = module._modules
    if (reason := published.assigned(module, code.own)) is not None:
        return reason
    for name in (*PARTS, "heads", "scale", *(() if code.late else ("detach",))):
        if not hasattr(module, name):
            return f"it has lost its {name}"
    if (reason := published.changed_parts(module, code.inner)) is not None:
        return reason
    softmax, heads, scale = parts["attend"], module.heads, module.scale
    if "forward" in vars(softmax):
        return "the forward of its .attend was assigned on the instance"
    if softmax.dim not in (-1, 3):  # of the products, which have four dimensions
        return f"its .attend is over the dimension {softmax.dim!r}"
    if type(heads) is not int or heads < 1:
        return f"its heads={heads!r} is not a positive integer"
    if type(scale) not in (float, int) or not math.isfinite(scale):
        return f"its scale={scale!r} is not a finite number"
    if not code.late:
        return Found(code.variant, heads, float(scale), bool(module.detach), None, code.splits)
    if (reason := published.changed_mode(parts[MODE], MODE)) is not None:
        return reason
    return Found(code.variant, heads, float(scale), False, parts[MODE].state, False)


def run(module: Theirs, x: Tensor, found: Found, out_dtype=None, backend: str | None = None) -> Tensor:
    """``module(x)``, with the values that the module holds now."""
    variant, heads, scale, frozen, state, splits = found
    x = module.norm(x)
    if frozen and splits and torch.is_grad_enabled() and _splits(module.to_qkv, x, heads):
        qk, v = _split(module.to_qkv, x)
        return module.to_out(attend.explained(qk, v, heads, scale))
    qkv = module.to_qkv(x)
    if (reason := _misfit(qkv, heads)) is not None:
        tally.plain(type(module).__name__, reason)
        return _rest(module, qkv)
    low = autocast_dtype(qkv.device.type) if qkv.dtype is not torch.float64 else None
    qkv = qkv if low is None else qkv.to(low)
    dtype = _of_sums(qkv.device.type, qkv.dtype) if variant.late and low is not None else qkv.dtype
    if not (torch.is_grad_enabled() and qkv.requires_grad):
        y = attend.inferred(qkv, heads, scale, dtype)
    elif frozen:
        first = qkv.shape[-1] // 3 * 2
        y = attend.explained(qkv[..., :first], qkv[..., first:], heads, scale)
    else:
        y = attend.attention(qkv, heads, scale, state, dtype)
    return module.to_out(y)


@functools.cache
def _of_sums(device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which autocast, which is on, leaves weighted sums of values; it is not the same on all devices."""
    value = torch.ones(1, dtype=dtype, device=device)
    return (torch.softmax(value, -1) * value).sum(-1).dtype


def _misfit(qkv: Any, heads: int) -> str | None:
    """What rules this computation out, although the attention's own forward may compute something."""
    if type(qkv) is not Tensor:
        return f"its to_qkv gives a {type(qkv).__name__}"
    if qkv.dtype not in DTYPES or qkv.layout != torch.strided:
        return f"its to_qkv gives {qkv.dtype}, {qkv.layout}: a dense tensor of a floating-point dtype is needed"
    if qkv.dim() != 3 or qkv.shape[-1] % (3 * heads):
        return f"its to_qkv gives the shape {tuple(qkv.shape)}, and it has {heads} heads"
    return None if qkv.numel() else "its input is empty"


def _rest(module: Theirs, qkv: Any) -> Tensor:
    """What the attention's own forward does after its ``to_qkv``, errors included."""
    cls = published.origin(type(module))
    twin: Any = object.__new__(cls)
    vars(twin).update(vars(module))
    vars(twin).update(norm=lambda x: x, to_qkv=lambda x: x)
    return cls.forward(twin, qkv)


def _splits(linear: Theirs, x: Any, heads: int) -> bool:
    """Whether two calls with parts of the weight do what one call of the layer does."""
    if _torch.has_hook(linear) or "forward" in vars(linear) or type(x) is not Tensor or x.dim() != 3 or not x.numel():
        return False
    tensors = (x, linear.weight, *(() if linear.bias is None else (linear.bias,)))
    usual = all(type(t) in (Tensor, nn.Parameter) and t.dtype in DTYPES and t.device == x.device for t in tensors)
    shape = linear.weight.shape
    return usual and len(shape) == 2 and shape[1] == x.shape[-1] and shape[0] > 0 and not shape[0] % (3 * heads)


def _split(linear: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """The queries and keys, as constants, and the values: the backward then forms the gradients of these alone."""
    weight, bias = linear.weight, linear.bias
    first = weight.shape[0] // 3 * 2
    with torch.no_grad():
        qk = F.linear(x, weight[:first], None if bias is None else bias[:first])
    v = F.linear(x, weight[first:], None if bias is None else bias[first:])
    low = autocast_dtype(x.device.type) if x.dtype is not torch.float64 else None
    return (qk, v) if low is None else (qk.to(low), v.to(low))


KIND = Kind("attention", "attention", None, is_candidate, _code, find, run)
