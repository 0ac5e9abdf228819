"""Derivatives of the operators: what is saved, which mode the backward is in, and the second order."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd import forward_ad

from . import ops, tally
from .backends import reference
from .spec import Spec

__all__ = ["EagerBcos", "bcos"]


def _save(ctx, inputs: tuple, outputs: tuple, spec: Spec, state: dict | None, backend: str) -> None:
    """Keeps x, w, bias, b, n and y (b = 2) or l (other b) for :func:`_backward`; for b = 1 x and w alone."""
    y, *rest = outputs
    ctx.call = spec, state, backend, y._version
    ctx.save_for_backward(*inputs, y if spec.saves_output else None, *rest)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, needs: tuple[bool, ...]) -> tuple:
    """Gradients of x, w, bias and b as far as ``needs`` says.

    ``state`` is the late explanation mode: ``state["fixed_weights"]`` is read when the backward runs.
    """
    if grad is None:
        return (None,) * 4
    spec, state, backend, _ = ctx.call
    x, weight, bias, b, *saved = _saved(ctx)
    explain = state is not None and bool(state["fixed_weights"])
    needs = _used(ctx, (x, weight, bias, b), needs)
    return ops.backward(grad, x, weight, bias, b, tuple(saved), spec, explain, needs, backend)


def _saved(ctx) -> tuple:
    """The saved tensors. An output that was changed in place since then is computed again."""
    spec, _, backend, version = ctx.call
    try:
        saved = ctx.saved_tensors
    except RuntimeError:
        if not spec.saves_output:
            raise
        # autograd compares no versions of a tensor that has hooks: what is left to raise is a changed x or w
        ctx._raw_saved_tensors[4].register_hooks(_itself, _itself)
        saved = ctx.saved_tensors
    x, weight, bias, b, y, *rest = saved
    if y is None or y._version <= version:
        return saved
    with torch.no_grad():
        return x, weight, bias, b, ops.forward(x, weight, bias, b, spec, backend)[0], *rest


def _itself(t: Tensor) -> Tensor:
    return t


class EagerBcos(torch.autograd.Function):
    """y of one transform, in less host time than the operator: outside of torch.compile, traces and torch.func."""

    @classmethod
    def apply(cls, *args):
        return super(torch.autograd.Function, cls).apply(*args)  # without looking for torch.func's transforms

    @staticmethod
    def forward(ctx, x, weight, bias, b, spec: Spec, state: dict | None, backend: str):
        outputs = ops.forward(x, weight, bias, b, spec, backend)
        _save(ctx, (x, weight, bias, b), outputs, spec, state, backend)
        return outputs[0]

    @staticmethod
    def backward(ctx, grad):
        return *_backward(ctx, grad, ctx.needs_input_grad[:4]), None, None, None


class DispatchedBcos(EagerBcos):
    """All outputs of the forward operator, on the floor of torch's dispatcher where derivatives are recorded."""

    @staticmethod
    def forward(ctx, operator, x, weight, bias, b, *options):
        outputs = _below(operator, x, weight, bias, b, *options)
        *options, out_dtype, detach, backend = options
        spec = Spec.from_operator(options, b is not None, detach, out_dtype)
        _save(ctx, (x, weight, bias, b), outputs, spec, None, backend)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx, grad, *_):
        return None, *_backward(ctx, grad, ctx.needs_input_grad[1:5]), *(None,) * (len(ctx.needs_input_grad) - 5)


class DispatchedBackward(EagerBcos):
    """The backward operator on the same floor; its backward is the second order."""

    @staticmethod
    def forward(ctx, operator, grad, x, weight, bias, b, *args):
        _y, _n, _l, _winner, *options, detach, explain, ctx.needs, _backend = args
        ctx.spec, ctx.state = Spec.from_operator(options, b is not None, detach, grad.dtype), {"fixed_weights": explain}
        ctx.save_for_backward(grad, x, weight, bias, b)
        ctx.set_materialize_grads(False)
        return _below(operator, grad, x, weight, bias, b, *args)

    @staticmethod
    def backward(ctx, *upstream):
        """The vector-Jacobian product of the reference's vector-Jacobian product, so every further order is exact."""
        # the pullback of torch.func.vjp runs after its transform has ended
        grad, *inputs = unwrap_dead_wrappers(ctx.saved_tensors)
        upstream = unwrap_dead_wrappers(upstream)
        asked = [need and g is not None for need, g in zip(ctx.needs, upstream, strict=True)]
        wanted = ctx.needs_input_grad[1:6]

        def first_order(grad, *inputs):
            transform = _of_some(inputs, asked, lambda *args: reference.bcos(*args, ctx.spec, ctx.state))
            return torch.func.vjp(transform, *_chosen(inputs, asked))[1](grad)

        results = (None,) * 5
        if any(asked):
            primals = (grad, *inputs)
            with torch.autocast(grad.device.type, enabled=False):
                _, vjp = torch.func.vjp(_of_some(primals, wanted, first_order), *_chosen(primals, wanted))
                found = iter(vjp(_chosen(upstream, asked)))
            results = tuple(next(found) if want else None for want in wanted)
        return None, *results, *(None,) * (len(ctx.needs_input_grad) - 6)


def _below(operator, *args):
    """The operator by the kernels below; outer transforms of torch.func are among them, and record by themselves."""
    with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def _register(function: type[EagerBcos], name: str) -> None:
    """Makes ``function`` the derivative of the operator ``name``."""
    operator = getattr(torch.ops.bcos_kernels, name).default

    def kernel(*args):
        if torch.is_grad_enabled():
            with enable_single_level_autograd_function():
                return function.apply(operator, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    ops.library.impl(name, kernel, "Autograd")


for _noun in ops.NOUNS:
    _register(DispatchedBcos, _noun)
    _register(DispatchedBackward, f"{_noun}_backward")


def _chosen(values: tuple, chosen) -> tuple:
    return tuple(v for v, c in zip(values, chosen, strict=True) if c)


def _of_some(values: tuple, chosen, function):
    """``function`` as a function of the chosen ones of its arguments, the others held fixed."""

    def partial(*args):
        rest = iter(args)
        return function(*(next(rest) if c else v for v, c in zip(values, chosen, strict=True)))

    return partial


def bcos(x, weight, bias, b, spec: Spec, state: dict | None, backend: str) -> Tensor:
    """y of one transform by the fused operators of ``backend``, or by the reference where these have no derivative."""
    if torch.compiler.is_compiling() or ops.transformed() or forward_ad._current_level >= 0:
        return _transformed(x, weight, bias, b, spec, state, backend)
    tally.fused()
    return _eager(x, weight, bias, b, spec, state, backend)


def _eager(x, weight, bias, b, spec: Spec, state: dict | None, backend: str) -> Tensor:
    if torch.is_grad_enabled():
        return EagerBcos.apply(x, weight, bias, b, spec, state, backend)
    return ops.forward(x, weight, bias, b, spec, backend)[0]


def _transformed(x, weight, bias, b, spec: Spec, state: dict | None, backend: str) -> Tensor:
    """Under torch.compile, torch.export, torch.jit.trace, torch.func and forward-mode derivatives."""
    if torch.compiler.is_compiling():
        tally.compiled()
    leaves = torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None
    if leaves and torch.onnx.is_in_onnx_export():  # standard operators only
        return reference.bcos(x, weight, bias, b, spec)
    if leaves and state is not None:  # a program that leaves Python keeps the mode in which it was made
        spec = replace(spec, detach=bool(state["fixed_weights"]))
    elif torch.compiler.is_compiling() and state is not None:
        # a compiled backward would keep the mode of its first run
        return torch.compiler.disable(_eager)(x, weight, bias, b, spec, state, backend)
    elif forward_ad._current_level >= 0 or state is not None:
        return reference.bcos(x, weight, bias, b, spec, state)
    return ops.dispatched(x, weight, bias, b, spec, backend)[0]


def _used(ctx, inputs: tuple, needs: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which gradients the running backward will use: ``autograd.grad(y, x)`` needs no dw, though w requires one."""
    if torch.compiler.is_compiling() or not all(needs[:2]):
        return needs
    nodes = iter(ctx.next_functions)
    return tuple(t is not None and _will_run(next(nodes)[0]) and need for t, need in zip(inputs, needs, strict=True))


def _will_run(node) -> bool:
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # raised for a leaf that autograd.grad was asked for
        return True
