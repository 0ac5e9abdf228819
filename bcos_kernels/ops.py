"""The operators of ``torch.library``: one schema per noun and direction, its fake and its vmap rule beside it.

``bcos_kernels::linear`` and ``bcos_kernels::conv2d`` return ``(y, n, l, winner)``: the output, the patch norm, the
linear output where y cannot stand for it (b other than 1 and 2) and the winning filter of each maximum; what a call
does not need is an empty tensor, and so is the norm of a depthwise layer, which is as large as x and formed again.
The backward operators return ``(dx, dweight, dbias, db)``, empty where not asked for. ``detach`` makes the scale a
constant in every derivative (early explanation mode); ``explain`` only in this backward (late explanation mode).
Their derivatives are registered in :mod:`bcos_kernels.autograd`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from .spec import Spec

__all__ = ["NOUNS", "backward", "dispatched", "forward", "library", "transformed"]

_FORMULA = "int max_out, float exponent, bool unit, float eps_inside, float eps_outside, float cos_eps, bool exact_two"
_GEOMETRY = {"linear": "", "conv2d": "int[2] stride, int[2] padding, int[2] dilation, int groups, "}
_BACKWARD_INPUTS = (
    "Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? b, Tensor? y, Tensor n, Tensor l, Tensor winner"
)

NOUNS = tuple(_GEOMETRY)

library = torch.library.Library("bcos_kernels", "DEF")


def _define(noun: str, geometry: str) -> None:
    library.define(
        f"{noun}(Tensor x, Tensor weight, Tensor? bias, Tensor? b, {geometry}{_FORMULA}, ScalarType out_dtype, "
        "bool detach, str backend) -> (Tensor y, Tensor n, Tensor l, Tensor winner)"
    )
    library.define(
        f"{noun}_backward({_BACKWARD_INPUTS}, {geometry}{_FORMULA}, bool detach, bool explain, bool[4] needs, "
        "str backend) -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor db)"
    )

    def forward_impl(*args):
        return getattr(dispatch.backend(args[-1]), noun)(*args[:-2])

    def backward_impl(grad, x, weight, bias, *args):
        *args, detach, explain, needs, backend = args
        return getattr(dispatch.backend(backend), f"{noun}_backward")(grad, x, weight, *args, detach or explain, needs)

    for name, impl, fake in ((noun, forward_impl, _fake_forward), (f"{noun}_backward", backward_impl, _fake_backward)):
        for key in ("CPU", "CUDA"):
            library.impl(name, impl, key)
        torch.library.register_fake(f"bcos_kernels::{name}", fake, lib=library)
        torch.library.register_vmap(f"bcos_kernels::{name}", _vmap(name), lib=library)


def _fake_forward(x, weight, bias, b, *rest):
    geometry, (max_out, exponent, *_, cos_eps, exact_two, out_dtype, _detach, _backend) = rest[:-10], rest[-10:]
    if geometry:
        stride, padding, dilation, groups = geometry
        linear = torch.ops.aten.convolution(
            x, weight.to(x.dtype), None, stride, padding, dilation, False, [0, 0], groups
        )
        norm_shape = (x.shape[0], groups, *linear.shape[2:])
        saves_norm = groups == 1 or weight.shape[1] > 1
    else:
        linear, norm_shape, saves_norm = x.new_empty(x.shape[0], weight.shape[0]), (x.shape[0], 1), True
    y_shape = (linear.shape[0], weight.shape[0] // max_out, *linear.shape[2:])
    layout = _memory_format(linear)
    y = x.new_empty(y_shape, dtype=out_dtype).contiguous(memory_format=layout)
    accumulated = torch.float64 if x.dtype == torch.float64 else torch.float32
    n = x.new_empty((0,), dtype=accumulated)
    if saves_norm and (b is not None or exponent != 1):
        n = n.new_empty(norm_shape).contiguous(memory_format=layout)
    keeps_linear = b is not None or exponent not in (1, 2) or (exponent == 2 and not exact_two and cos_eps != 0)
    l = torch.empty_like(y) if keeps_linear else y.new_empty(0)  # noqa: E741
    winner = torch.empty_like(y, dtype=torch.uint8) if max_out > 1 else y.new_empty(0, dtype=torch.uint8)
    return y, n, l, winner


def _memory_format(t: Tensor) -> torch.memory_format:
    if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def _fake_backward(grad, x, weight, bias, b, *rest):
    likes = (x, weight, weight.new_empty(weight.shape[0]), b)
    return tuple(torch.empty_like(like) if need else x.new_empty(0) for like, need in zip(likes, rest[-2], strict=True))


def _vmap(name: str):
    """A forward of many inputs against one weight is a larger batch; anything else is one call per slice."""

    def rule(info, in_dims, *args):
        op = getattr(torch.ops.bcos_kernels, name)
        dims = [d if isinstance(a, Tensor) else None for a, d in zip(args, in_dims, strict=True)]
        if name in NOUNS and dims[0] is not None and not any(d is not None for d in dims[1:]):
            folded = args[0].movedim(dims[0], 0).flatten(0, 1)
            outputs = op(folded, *args[1:])
            size = (info.batch_size, args[0].shape[dims[0] == 0])
            return tuple(t.unflatten(0, size) if t.dim() > 1 else t.expand(size[0], 0) for t in outputs), (0,) * 4
        slices = [
            op(*(a if d is None else a.select(d, i) for a, d in zip(args, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(outputs) for outputs in zip(*slices, strict=True)), (0,) * 4

    return rule


for _noun, _geometry in _GEOMETRY.items():
    _define(_noun, _geometry)


def transformed() -> bool:
    """Whether torch.func or a trace of torch.jit is to see the operators and not the Functions around them."""
    return torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None


def _plain_keys(device: str) -> tuple[int, int]:
    """The dispatch keys of a tensor that is nothing but memory on ``device``, in and out of inference mode."""
    key = torch._C.DispatchKey
    inference = torch._C.DispatchKeySet(getattr(key, device)).add(getattr(key, f"Autocast{device}"))
    return inference.raw_repr(), inference.add(key.ADInplaceOrView).add(getattr(key, f"Autograd{device}")).raw_repr()


_PLAIN = frozenset((*_plain_keys("CPU"), *_plain_keys("CUDA")))


def _watched(tensors: tuple) -> bool:
    """Whether a mode or a special kind of tensor is to see the operators; plain calls skip torch's dispatcher."""
    return torch._C._len_torch_dispatch_stack() > 0 or not all(
        torch._C._dispatch_keys(t).raw_repr() in _PLAIN for t in tensors
    )


def dispatched(x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None, spec: Spec, backend: str):
    """``(y, n, l, winner)`` of the transform ``spec`` by the operator, which is differentiable."""
    op = getattr(torch.ops.bcos_kernels, spec.noun)
    return op(x, weight, bias, b, *spec.geometry, *spec.formula, spec.out_dtype, spec.detach, backend)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None, spec: Spec, backend: str):
    """The same without a graph; where nothing watches operators by the backend itself, in half the time."""
    if torch.compiler.is_compiling() or transformed() or _watched((x, weight)):
        return dispatched(x, weight, bias, b, spec, backend)
    return getattr(dispatch.backend(backend), spec.noun)(
        x, weight, bias, b, *spec.geometry, *spec.formula, spec.out_dtype
    )


def backward(grad: Tensor, x, weight, bias, b, saved: tuple, spec: Spec, explain: bool, needs, backend: str):
    """Gradients of x, weight, bias and b, ``None`` where ``needs`` is false; ``explain`` freezes the scale.

    They are differentiable where the grad mode is on.
    """
    name, options = f"{spec.noun}_backward", (*spec.geometry, *spec.formula)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed() or _watched((grad, x, weight)):
        grads = getattr(torch.ops.bcos_kernels, name)(
            grad, x, weight, bias, b, *saved, *options, spec.detach, explain, list(needs), backend
        )
    else:
        grads = getattr(dispatch.backend(backend), name)(
            grad, x, weight, b, *saved, *options, spec.detach or explain, list(needs)
        )
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))
