"""The operators of ``torch.library``: one schema per noun and direction, its fake and its vmap rule beside it.

``bcos_kernels::linear`` and ``bcos_kernels::conv2d`` return ``(y, n, l, winner)``: the output, the patch norm, the
linear output where y cannot stand for it (b other than 1 and 2) and the winning filter of each maximum; what a call
does not need is an empty tensor, and so is the norm of a depthwise layer, which is as large as x and formed again.
The backward operators return ``(dx, dweight, dbias, db)``, empty where not asked for.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import dispatch
from .spec import Spec

__all__ = ["backward", "forward"]

_FORMULA = "int max_out, float exponent, bool unit, float eps_inside, float eps_outside, float cos_eps, bool exact_two"
_GEOMETRY = {"linear": "", "conv2d": "int[2] stride, int[2] padding, int[2] dilation, int groups, "}
_BACKWARD_INPUTS = "Tensor grad, Tensor x, Tensor weight, Tensor? b, Tensor? y, Tensor n, Tensor l, Tensor winner"

_library = torch.library.Library("bcos_kernels", "DEF")


def _define(noun: str, geometry: str) -> None:
    _library.define(
        f"{noun}(Tensor x, Tensor weight, Tensor? bias, Tensor? b, {geometry}{_FORMULA}, ScalarType out_dtype, "
        "str backend) -> (Tensor y, Tensor n, Tensor l, Tensor winner)"
    )
    _library.define(
        f"{noun}_backward({_BACKWARD_INPUTS}, {geometry}{_FORMULA}, bool explain, bool[4] needs, str backend) "
        "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor db)"
    )

    def forward_impl(*args):
        return getattr(dispatch.backend(args[-1]), noun)(*args[:-1])

    def backward_impl(*args):
        return getattr(dispatch.backend(args[-1]), f"{noun}_backward")(*args[:-1])

    for name, impl, fake in ((noun, forward_impl, _fake_forward), (f"{noun}_backward", backward_impl, _fake_backward)):
        for key in ("CPU", "CUDA"):
            _library.impl(name, impl, key)
        torch.library.register_fake(f"bcos_kernels::{name}", fake, lib=_library)
        torch.library.register_vmap(f"bcos_kernels::{name}", _vmap_by_slices(name), lib=_library)


def _fake_forward(x, weight, bias, b, *rest):
    geometry, (max_out, exponent, *_, cos_eps, exact_two, out_dtype, _backend) = rest[:-9], rest[-9:]
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


def _fake_backward(grad, x, weight, b, *rest):
    likes = (x, weight, weight.new_empty(weight.shape[0]), b)
    return tuple(torch.empty_like(like) if need else x.new_empty(0) for like, need in zip(likes, rest[-2], strict=True))


def _vmap_by_slices(name: str):
    """Each call of a kernel is large: a batch of calls is a loop over them."""

    def rule(info, in_dims, *args):
        op = getattr(torch.ops.bcos_kernels, name)
        slices = [
            op(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(outputs) for outputs in zip(*slices, strict=True)), (0,) * 4

    return rule


for _noun, _geometry in _GEOMETRY.items():
    _define(_noun, _geometry)


def _op(spec: Spec, backend: str, tensors: tuple, direction: str = ""):
    """The operator, without its last argument; where nothing watches operators the backend itself, in half the time."""
    noun = ("linear" if spec.is_linear else "conv2d") + direction
    if torch.compiler.is_compiling() or _watched(tensors):
        return partial(_last, getattr(torch.ops.bcos_kernels, noun), backend)
    return getattr(dispatch.backend(backend), noun)


def _last(op, last, *args):
    return op(*args, last)


def _plain_keys(device: str) -> tuple[int, int]:
    """The dispatch keys of a tensor that is nothing but memory on ``device``, in and out of inference mode."""
    key = torch._C.DispatchKey
    inference = torch._C.DispatchKeySet(getattr(key, device)).add(getattr(key, f"Autocast{device}"))
    return inference.raw_repr(), inference.add(key.ADInplaceOrView).add(getattr(key, f"Autograd{device}")).raw_repr()


_PLAIN = frozenset((*_plain_keys("CPU"), *_plain_keys("CUDA")))


def _watched(tensors: tuple) -> bool:
    """Whether a mode, a transform, a trace or a special kind of tensor is to see the operators."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or not all(torch._C._dispatch_keys(t).raw_repr() in _PLAIN for t in tensors)
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None, spec: Spec, backend: str):
    """``(y, n, l, winner)`` of the transform ``spec``."""
    return _op(spec, backend, (x, weight))(x, weight, bias, b, *spec.geometry, *spec.formula, spec.out_dtype)


def backward(grad: Tensor, x, weight, b, saved: tuple, spec: Spec, explain: bool, needs, backend: str):
    """Gradients of x, weight, bias and b, ``None`` where ``needs`` is false; ``explain`` freezes the scale."""
    grads = _op(spec, backend, (grad, x, weight), "_backward")(
        grad, x, weight, b, *saved, *spec.geometry, *spec.formula, explain, list(needs)
    )
    return tuple(g if need else None for g, need in zip(grads, needs, strict=True))
