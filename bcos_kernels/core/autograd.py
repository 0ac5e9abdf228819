"""The derivatives of every op: what is saved, which explanation mode the backward is in, and the second order."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from dataclasses import replace

import torch
from torch import Tensor

from .. import tally
from . import _torch
from .op import Op, library

__all__ = ["EagerFunction", "apply", "register"]

Late = MutableMapping | None
"""The late explanation mode: ``late["fixed_weights"]`` is read when the backward runs."""


def _save(ctx, op: Op, inputs: tuple, outputs: tuple, call, late: Late, backend: str) -> None:
    """Keeps inputs and outputs for :func:`_backward`; the first output only where the backward needs it."""
    first, *others = outputs
    ctx.op, ctx.call, ctx.late, ctx.backend, ctx.version = op, call, late, backend, first._version
    ctx.save_for_backward(*inputs, first if call.spec.saves_output else None, *others)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, needs: tuple[bool, ...]) -> tuple:
    """The gradients of the inputs that ``needs`` asks for, and None for the others."""
    op = ctx.op
    if grad is None:
        return (None,) * len(needs)
    inputs, saved = _saved(ctx)
    frozen = ctx.late is not None and bool(ctx.late["fixed_weights"])
    _running.late = ctx.late
    try:
        return op.backward(grad, inputs, saved, ctx.call, frozen, _used(ctx, inputs, needs), ctx.backend)
    finally:
        _running.late = None


class _Running(threading.local):
    """The late mode of the call whose backward runs in this thread; the backward operator itself takes bools alone."""

    late: Late = None


_running = _Running()


def _saved(ctx) -> tuple:
    """The inputs and the saved outputs. An output that was changed in place after the forward is computed again."""
    op, count = ctx.op, len(ctx.op.inputs._fields)
    try:
        kept = ctx.saved_tensors
    except RuntimeError:
        if not ctx.call.spec.saves_output:
            raise
        # Hooks on the first output stop autograd from comparing its version, so only a changed input still raises.
        _torch.saved_tensor_of(ctx, count).register_hooks(_itself, _itself)
        kept = ctx.saved_tensors
    inputs, saved = op.inputs(*kept[:count]), op.outputs(*kept[count:])
    if saved[0] is None or saved[0]._version <= ctx.version:
        return inputs, saved
    with torch.no_grad():
        return inputs, op.outputs(op.forward(inputs, ctx.call, ctx.backend)[0], *saved[1:])


def _itself(t: Tensor) -> Tensor:
    return t


class EagerFunction(torch.autograd.Function):
    """The returned outputs of a call, with less host time than the operator takes.

    It is used only outside of compilers, traces and torch.func.
    """

    @classmethod
    def apply(cls, *args):
        return super(torch.autograd.Function, cls).apply(*args)  # skips Function's search for torch.func's transforms

    @staticmethod
    def forward(ctx, op: Op, call, late: Late, backend: str, *inputs):
        inputs = op.inputs(*inputs)
        outputs = op.forward(inputs, call, backend)
        _save(ctx, op, inputs, outputs, call, late, backend)
        returned = outputs[: op.returned]
        if op.returned > 1:
            ctx.mark_non_differentiable(*returned[1:])
        return returned

    @staticmethod
    def backward(ctx, grad, *_):
        return None, None, None, None, *_backward(ctx, grad, ctx.needs_input_grad[4:])


class DispatchedFunction(EagerFunction):
    """All outputs of the forward operator: its kernel for the autograd keys of torch's dispatcher."""

    @staticmethod
    def forward(ctx, op: Op, *args):
        outputs = _below(op.forward_operator, *args)
        inputs, spec, (backend,) = op.parsed(args)
        _save(ctx, op, inputs, outputs, op.call(inputs, spec), None, backend)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx, grad, *_):
        count = len(ctx.op.inputs._fields)
        needs = ctx.needs_input_grad[1 : 1 + count]
        return None, *_backward(ctx, grad, needs), *(None,) * (len(ctx.needs_input_grad) - 1 - count)


class DispatchedBackward(EagerFunction):
    """The backward operator's kernel for the autograd keys; its own backward computes the second order."""

    @staticmethod
    def forward(ctx, op: Op, grad, *args):
        inputs, _, ctx.spec, (frozen, ctx.needs, _) = op.parsed_backward(args)
        ctx.op, ctx.frozen, ctx.late = op, frozen, _running.late
        ctx.save_for_backward(grad, *inputs)
        ctx.set_materialize_grads(False)
        return _below(op.backward_operator, grad, *args)

    @staticmethod
    def backward(ctx, *grads):
        """The vector-Jacobian product of the reference's vector-Jacobian product; every higher order is exact."""
        # torch.func.vjp calls this after its transform has ended, which leaves dead wrappers around the tensors
        grad, *inputs = _torch.unwrap_dead_wrappers(ctx.saved_tensors)
        grads = _torch.unwrap_dead_wrappers(grads)
        op, primals = ctx.op, (grad, *inputs)
        asked = [need and g is not None for need, g in zip(ctx.needs, grads, strict=True)]
        wanted = ctx.needs_input_grad[1 : 1 + len(primals)]
        mode = {"fixed_weights": ctx.frozen}

        def first_order(grad, *inputs):
            function = _of_some(inputs, asked, lambda *args: op.reference(op.inputs(*args), ctx.spec, mode)[0])
            return torch.func.vjp(function, *_chosen(inputs, asked))[1](grad)

        results = (None,) * len(primals)
        if any(asked):
            with torch.autocast(grad.device.type, enabled=False):
                _, vjp = torch.func.vjp(_of_some(primals, wanted, first_order), *_chosen(primals, wanted))
                if ctx.late is not None:  # read by each backward: this one is another than that whose result it derives
                    mode["fixed_weights"] = bool(ctx.late["fixed_weights"])
                found = iter(vjp(_chosen(grads, asked)))
            results = tuple(next(found) if want else None for want in wanted)
        return None, *results, *(None,) * (len(ctx.needs_input_grad) - 1 - len(primals))


def _below(operator, *args):
    """Calls the operator's kernels below autograd. Outer transforms of torch.func come next and record on their own."""
    with torch.enable_grad(), _torch.below_autograd():
        return operator(*args)


def register(op: Op) -> None:
    """Registers the derivatives of the op's operators with torch's dispatcher."""
    for function, operator in ((DispatchedFunction, op.forward_operator), (DispatchedBackward, op.backward_operator)):
        _register(op, function, operator)


def _register(op: Op, function: type[EagerFunction], operator) -> None:
    def kernel(*args):
        if torch.is_grad_enabled():
            with _torch.enable_single_level_autograd_function():
                return function.apply(op, *args)
        with _torch.below_autograd():
            return operator(*args)

    library.impl(operator, kernel, "Autograd")


def _chosen(values: tuple, chosen) -> tuple:
    return tuple(v for v, c in zip(values, chosen, strict=True) if c)


def _of_some(values: tuple, chosen, function):
    """``function`` as a function of its chosen arguments alone; the others are held fixed."""

    def partial(*args):
        rest = iter(args)
        return function(*(next(rest) if c else v for v, c in zip(values, chosen, strict=True)))

    return partial


def apply(op: Op, inputs, call, late: Late, backend: str) -> tuple[Tensor, ...]:
    """The returned outputs of a call: of the kernels, or of the reference where these lack a derivative."""
    if torch.compiler.is_compiling() or _torch.transformed() or _torch.forward_derivatives():
        return _transformed(op, inputs, call, late, backend)
    tally.fused()
    return _eager(op, inputs, call, late, backend)


def _eager(op: Op, inputs, call, late: Late, backend: str) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled():
        return EagerFunction.apply(op, call, late, backend, *inputs)
    return op.forward(inputs, call, backend)[: op.returned]


def _transformed(op: Op, inputs, call, late: Late, backend: str) -> tuple[Tensor, ...]:
    """The same under torch.compile, torch.export, torch.jit.trace, torch.func and forward-mode derivatives."""
    spec = call.spec
    if torch.compiler.is_compiling():
        tally.compiled()
    exports = _torch.is_exporting() or _torch.is_traced()
    if exports and torch.onnx.is_in_onnx_export():  # ONNX has standard operators only
        return op.reference(inputs, spec, None)
    if exports and late is not None:  # an exported program keeps the mode in which it was exported
        spec = replace(spec, detach=bool(late["fixed_weights"]))
    elif torch.compiler.is_compiling() and late is not None:
        # A compiled backward would keep the mode of its first run.
        return torch.compiler.disable(_eager)(op, inputs, call, late, backend)
    elif _torch.forward_derivatives() or late is not None:
        return op.reference(inputs, spec, late)
    return op.dispatched(inputs, spec, backend)[: op.returned]


def _used(ctx, inputs: tuple, needs: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which gradients the running backward will use: ``autograd.grad(y, x)`` uses no dw, even if w requires grad."""
    if torch.compiler.is_compiling() or not all(needs[:2]):
        return needs
    nodes = iter(ctx.next_functions)
    return tuple(
        t is not None and _torch.will_run(next(nodes)[0]) and need for t, need in zip(inputs, needs, strict=True)
    )
