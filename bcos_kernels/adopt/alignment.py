"""Reads a published layer of dynamic alignment units at every call: its present values, and why its own forward runs.

The layers of CoDA-Nets hold a module that makes the dynamic weights by two convolutions, and one for their norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.checks import autocast_dtype
from ..core.device import fields_of
from ..dynamic_alignment import DYNAMIC_ALIGNMENT, Call, Spec, functional
from ..modules import Detachable
from . import published
from .kind import Kind
from .published import Theirs

__all__ = ["KIND", "WEIGHTS", "find", "is_candidate", "run"]

WEIGHTS = "weight_mod"
"""The attribute in which a layer holds the module that makes its dynamic weights."""

PARTS = "weighting_f", "norm_func"
"""The modules that make the dynamic weights and their norms, in :data:`WEIGHTS`."""


@dataclass(frozen=True)
class Variant:
    """One of the published formulas."""

    norm: str
    """The code of the norm: ``"squash"``, or ``"lp"`` where the module's ``p`` and ``return_norm`` decide."""


@dataclass(frozen=True, eq=False)
class Code(published.Code):
    """What the code of these classes together computes: the layer's, that of its weights, its norm's and torch's."""

    weights_own: frozenset[str] = frozenset()
    """The names of the methods that make the dynamic weights and the patches."""


@published.reads_code(Code)
def read(reading: published.Reading, cls: type, weights: type, norm: type, *parts: type) -> Code:
    """Forms the fingerprints of the classes and looks them up in the table.

    ``parts`` are the sequence and the two convolutions that make the dynamic weights.
    """
    _, layer = reading.known(cls, "alignments")
    _, making = reading.known(weights, "dynamic_weights", WEIGHTS, ("forward", "unfold"))
    formula, _ = reading.known(norm, "weight_norms", f"{WEIGHTS}.norm_func")
    for part in parts:
        _, found = reading.known(part, "linears", f"{WEIGHTS}.weighting_f")
        if found.digest != "torch":
            raise published.Unknown(f"its .{WEIGHTS}.weighting_f has parts that are not PyTorch's own")
    return Code(
        Variant(formula["norm"]),
        parts=(weights, norm, *parts),
        own=frozenset(name for _, name, _ in layer.methods) - {"forward"} | {WEIGHTS},
        reads=layer.reads,
        weights_own=frozenset(name for _, name, _ in making.methods) | set(PARTS),
    )


class Found(NamedTuple):
    """How one call is served: the norm's name, and the two convolutions that make the dynamic weights."""

    norm: str
    projection: Theirs
    making: Theirs


def is_candidate(module: Theirs) -> bool:
    """Whether the module looks like a layer of CoDA-Nets: a part that makes its weights, and an explanation mode."""
    known = WEIGHTS in module._modules and "detach" in vars(module)
    return known and not isinstance(module, (torch.jit.ScriptModule, Detachable))


def _code(module: Theirs) -> Code | str:
    """The code of the layer and of its parts; or why it has not the parts of a published one."""
    weights = module._modules[WEIGHTS]
    if weights is None or not weights._modules.keys() >= set(PARTS):
        return f"its .{WEIGHTS} does not have the parts {' and '.join(PARTS)}"
    sequence, norm = weights._modules["weighting_f"], weights._modules["norm_func"]
    if not isinstance(sequence, nn.Sequential) or len(sequence) != 2:
        return f"its .{WEIGHTS}.weighting_f is not a sequence of two convolutions"
    convolutions = list(sequence)
    if not all(isinstance(conv, nn.Conv2d) for conv in convolutions):
        return f"its .{WEIGHTS}.weighting_f is not a sequence of two convolutions"
    classes = type(module), type(weights), type(norm), type(sequence), *map(type, convolutions)
    return published.code(classes, read)


def find(module: Theirs, x: Tensor | None = None, backend: str | None = None) -> Found | str:
    """How a call is served; or the reason why the layer's own forward must run."""
    code = _code(module)
    if isinstance(code, str) or isinstance(code.variant, str):
        return code if isinstance(code, str) else code.variant
    weights = module._modules[WEIGHTS]
    sequence, norm = (weights._modules[name] for name in PARTS)
    projection, making = sequence
    called = ("forward", "_conv_forward")
    for part, names, where in (
        (module, code.own, ""), (weights, code.weights_own, WEIGHTS), (sequence, called, f"{WEIGHTS}.{PARTS[0]}"),
        (norm, called, f"{WEIGHTS}.{PARTS[1]}"), (projection, called, f"{WEIGHTS}.{PARTS[0]}[0]"),
        (making, called, f"{WEIGHTS}.{PARTS[0]}[1]"),
    ):  # fmt: skip
        if (reason := published.assigned(part, names, where)) is not None:
            return reason
    for part in (module, weights, sequence):
        if (reason := published.changed_parts(part)) is not None:
            return reason
    return (
        published.changing(projection)
        or published.changing(making)
        or _kept(module)
        or _misfit(weights, projection, making)
        or (x is not None and _unusual(x, projection, making))
        or _with_norm(norm, code.variant, Found("", projection, making))
    )


def _kept(module: Theirs) -> str | None:
    """Whether the layer's user wants the dynamic weights themselves, which our kernels never hold at once."""
    for name, what in (
        ("save_matrix", "keeps its dynamic weights for reverse"),
        ("reuse", "uses kept dynamic weights"),
    ):
        value = getattr(module, name, None)
        if value is not False:
            return f"its {name}={value!r}: it {what}"
    return None if hasattr(module, "detach") else "it has lost its detach"


def _with_norm(norm: Theirs, variant: Any, found: Found) -> Found | str:
    if variant.norm == "squash":
        return found._replace(norm="squash")
    if not norm.return_norm:
        return "its norm_func returns w/‖w‖ in place of the norm, by which the layer then divides: return_norm is False"
    if norm.p not in (1, 2):
        return f"its norm_func has p={norm.p!r}: 1 or 2 is needed"
    return found._replace(norm=f"l{int(norm.p)}")


def _misfit(weights: Theirs, projection: Theirs, making: Theirs) -> str | None:
    """Where the sizes that the layer holds contradict its convolutions."""
    place = f".{WEIGHTS}"
    for name in ("kernel_size", "stride", "padding"):
        mine, its = published.pair(getattr(weights, name, None)), published.pair(getattr(projection, name))
        if mine != its or not all(type(v) is int for v in its):
            return f"the {name}={mine!r} of its {place} contradicts the convolution, which has {its!r}"
    for conv, what in ((projection, "first"), (making, "second")):
        if conv.padding_mode != "zeros" or published.pair(conv.dilation) != (1, 1):
            return f"the {what} convolution of its {place} has padding_mode={conv.padding_mode!r} or a dilation"
    if projection.groups != 1 or projection.bias is not None:
        return f"the first convolution of its {place} has groups or a bias"
    if making.kernel_size != (1, 1) or making.stride != (1, 1) or published.pair(making.padding) != (0, 0):
        return f"the second convolution of its {place} is not pointwise"
    rank, channels, *kernel = projection.weight.shape
    patch, outputs = channels * kernel[0] * kernel[1], weights.out_channels
    if tuple(making.weight.shape) != (outputs * patch, rank // making.groups, 1, 1):
        shape = tuple(making.weight.shape)
        return f"the second convolution of its {place} has the weight {shape} for {outputs} outputs, {patch} values"
    return None


def _unusual(x: Tensor, projection: Theirs, making: Theirs) -> str | None:
    """What rules our kernels out for this input, although the layer's own forward may compute something."""
    if not x.is_floating_point() or x.layout != torch.strided:
        return f"its input is {x.dtype}, {x.layout}: a dense tensor of a floating-point dtype is needed"
    if x.dim() != 4 or not x.numel():
        return f"its input has the shape {tuple(x.shape)}: four dimensions, none of them 0, are needed"
    for name, t in (("weight", projection.weight), ("weight", making.weight), ("bias", making.bias)):
        other = t is not None and t.dtype != x.dtype and autocast_dtype(x.device.type) is None
        if t is not None and (other or t.device != x.device):
            return f"its {name} is {t.dtype} on {t.device} and its input {x.dtype} on {x.device}"
    height, width = (n + 2 * p for n, p in zip(x.shape[2:], projection.padding, strict=True))
    if x.shape[1] != projection.in_channels or height < projection.kernel_size[0] or width < projection.kernel_size[1]:
        return f"its input of shape {tuple(x.shape)} does not fit its convolutions"
    return None


def run(module: Theirs, x: Tensor, found: Found, out_dtype=None, backend: str | None = None) -> Tensor:
    """``module(x)``, computed by the fused kernels with the values that the module holds now."""
    norm, projection, making = found
    module._modules[WEIGHTS].shape = x.shape[-2:]  # as its own forward does, for fold
    options = projection.stride, projection.padding, making.groups, norm, backend
    y = functional.dynamic_alignment(x, projection.weight, making.weight, making.bias, bool(module.detach), options)
    return y if out_dtype is None else y.to(out_dtype)


def _call(module: Theirs, found: Found) -> Call:
    """The call of the smallest input that the layer takes, of its weight's dtype and on its device."""
    _, projection, making = found
    weight, kernel = projection.weight, projection.kernel_size
    outputs = making.out_channels // (projection.in_channels * kernel[0] * kernel[1])
    shape = (1, projection.in_channels, *kernel)
    return Call(
        spec=Spec(kernel), x_shape=shape, rank=len(weight), outputs=outputs, dtype=weight.dtype,
        bias=making.bias is not None, **fields_of(weight.device),
    )  # fmt: skip


def _ours(module: Theirs) -> Found | str:
    """How a layer of this package is served, which says itself what it computes."""
    if module.unseen() is None:
        return f"a hook or an adapter sees its .{WEIGHTS}"
    return Found(module.norm, *module.weight_mod.weighting_f)


KIND = Kind("alignment", "dynamic alignment layer", DYNAMIC_ALIGNMENT, is_candidate, _code, find, run, _call, _ours)
