"""Autograd Functions of the fused operators: what is saved, which mode the backward is in, and the second order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import ops, tally
from .backends import reference
from .spec import Spec

__all__ = ["Bcos", "bcos"]


class Bcos(torch.autograd.Function):
    """y of one transform; saves x, w, n and y (b = 2) or l (other b), or x and w alone (b = 1).

    ``state`` is the late explanation mode: ``state["fixed_weights"]`` is read when the backward runs. A backward that
    will itself be differentiated is the vector-Jacobian product of the reference, so every order of it is exact.
    """

    @staticmethod
    def forward(x, weight, bias, b, spec: Spec, state: dict | None, backend: str):
        return ops.forward(x, weight, bias, b, spec, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, b, ctx.spec, ctx.state, ctx.backend = inputs
        ctx.save_for_backward(x, weight, bias, b, output[0] if ctx.spec.saves_output else None, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, *_):
        none = (None,) * 3
        if grad is None:
            return None, None, None, None, *none
        x, weight, bias, b, *saved = ctx.saved_tensors
        needs = _wanted(ctx, (x, weight, bias, b))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_backward(grad, (x, weight, bias, b), needs, ctx.spec, ctx.state), *none
        explain = ctx.spec.detach or (ctx.state is not None and ctx.state["fixed_weights"])
        return *ops.backward(grad, x, weight, b, tuple(saved), ctx.spec, explain, needs, ctx.backend), *none

    @classmethod
    def vmap(cls, info, in_dims, x, weight, bias, b, spec, state, backend):
        """A batch of inputs against one weight is a larger batch; anything else is one call per slice."""
        if in_dims[0] is not None and all(d is None for d in in_dims[1:4]):
            folded = x.movedim(in_dims[0], 0).flatten(0, 1)
            outputs = cls.apply(folded, weight, bias, b, spec, state, backend)
            size = (info.batch_size, folded.shape[0] // info.batch_size)
            return tuple(t.unflatten(0, size) if t.dim() > 1 else t.expand(size[0], 0) for t in outputs), (0,) * 4
        slices = [
            cls.apply(
                *(t if d is None else t.select(d, i) for t, d in zip((x, weight, bias, b), in_dims, strict=False)),
                spec,
                state,
                backend,
            )
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(outputs) for outputs in zip(*slices, strict=True)), (0,) * 4


class TransformedBcos(Bcos):
    """With the forward-mode derivatives that torch.compile takes no Function with."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        Bcos.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def jvp(ctx, *tangents):
        """The transpose of the vector-Jacobian product: levels of forward-mode derivatives do not nest."""
        inputs = ctx.saved_tensors[:4]
        chosen = [tangent is not None for tangent in tangents[:4]]
        transform = _of_some(inputs, chosen, ctx.spec, ctx.state)
        y, vjp = torch.func.vjp(transform, *(t for t, c in zip(inputs, chosen, strict=True) if c))
        _, transposed = torch.func.vjp(vjp, torch.zeros_like(y))
        return *transposed(tuple(t for t in tangents[:4] if t is not None)), None, None, None


class EagerBcos(torch.autograd.Function):
    """The same at less host time, outside of torch.compile, torch.func and forward mode: y is its only output."""

    @classmethod
    def apply(cls, *args):
        return super(torch.autograd.Function, cls).apply(*args)  # without looking for torch.func's transforms

    @staticmethod
    def forward(ctx, x, weight, bias, b, spec: Spec, state: dict | None, backend: str):
        y, *saved = ops.forward(x, weight, bias, b, spec, backend)
        ctx.spec, ctx.state, ctx.backend = spec, state, backend
        ctx.save_for_backward(x, weight, bias, b, y if spec.saves_output else None, *saved)
        ctx.set_materialize_grads(False)
        return y

    backward = staticmethod(Bcos.backward)


def bcos(x, weight, bias, b, spec: Spec, state: dict | None, backend: str) -> Tensor:
    """y of one transform by the fused operators of ``backend``: see :class:`Bcos`."""
    if not torch.compiler.is_compiling():
        tally.fused()
        return _eager(x, weight, bias, b, spec, state, backend)
    tally.compiled()
    if state is not None:
        # a compiled backward would keep the mode of its first run
        return torch.compiler.disable(_eager)(x, weight, bias, b, spec, state, backend)
    # as outputs of an operator: Dynamo believes that an argument of torch.func.grad needs no gradient
    x, weight, bias, b = (t if t is None else t.view_as(t) for t in (x, weight, bias, b))
    return Bcos.apply(x, weight, bias, b, spec, state, backend)[0]


def _eager(*args) -> Tensor:
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return TransformedBcos.apply(*args)[0]
    if torch.is_grad_enabled():
        return EagerBcos.apply(*args)
    *inputs, _state, backend = args
    return ops.forward(*inputs, backend)[0]


def _wanted(ctx, inputs: tuple) -> tuple[bool, ...]:
    """Which gradients the running backward will use: ``autograd.grad(y, x)`` needs no dw, though w requires one."""
    needs = ctx.needs_input_grad[:4]
    if torch.compiler.is_compiling() or not all(needs[:2]):
        return needs
    nodes = iter(ctx.next_functions)
    return tuple(t is not None and _will_run(next(nodes)[0]) and need for t, need in zip(inputs, needs, strict=True))


def _will_run(node) -> bool:
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # raised for a leaf that autograd.grad was asked for
        return True


def _differentiable_backward(grad: Tensor, inputs: tuple, needs: tuple, spec: Spec, state: dict | None) -> tuple:
    """Gradients of ``inputs`` as a differentiable function of ``grad`` and of ``inputs``."""
    wanted = tuple(t for t, need in zip(inputs, needs, strict=True) if need)
    transform = _of_some(inputs, needs, spec, state)
    with torch.autocast(grad.device.type, enabled=False):
        grads = iter(torch.func.vjp(transform, *wanted)[1](grad))
    return tuple(next(grads) if need else None for need in needs)


def _of_some(inputs: tuple, chosen, spec: Spec, state: dict | None):
    """The reference transform as a function of the chosen ones of its four inputs, the others held fixed."""

    def transform(*primals):
        rest = iter(primals)
        return reference.bcos(*(next(rest) if c else t for t, c in zip(inputs, chosen, strict=True)), spec, state)

    return transform
