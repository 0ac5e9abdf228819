"""The derivatives of every op: what is saved, which explanation mode the backward is in, and the second order."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import tally
from . import _torch, flops, kernels, pairs
from .op import Op, library

__all__ = ["EagerFunction", "apply", "kernels_of", "register"]

Late = MutableMapping | None
"""The late explanation mode: ``late["fixed_weights"]`` is read when the backward runs."""


def _save(ctx, op: Op, inputs: tuple, outputs: tuple, call, late: Late, backend: str, *more: Tensor) -> None:
    """Keeps inputs, outputs and ``more`` for :func:`_saved`; the first output only where a backward needs it."""
    first, *others = outputs
    ctx.op, ctx.call, ctx.late, ctx.backend = op, call, late, backend
    ctx.version = None if first is None else first._version
    ctx.save_for_backward(*inputs, first if call.spec.saves_output else None, *others, *more)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, joined: tuple, needs: tuple[bool, ...]) -> tuple:
    """The gradients of the inputs that ``needs`` asks for, and None for the others.

    ``joined`` holds the gradients of the op's intermediates, which are None unless a second derivative forms them.
    """
    op, call, backend = ctx.op, ctx.call, ctx.backend
    gradient_map = pairs.left(ctx, grad)
    joins = joined != () and any(g is not None for g in joined)
    if grad is None and not joins:
        return (None,) * len(needs)
    inputs, saved, intermediates = _saved(ctx)
    frozen, used = ctx.late is not None and bool(ctx.late["fixed_weights"]), _used(ctx, inputs, needs)
    if frozen:
        used = tuple(map(all, zip(used, op.has_frozen_gradient, strict=True)))
    if call.spec.paired and (found := pairs.leave(ctx, grad, joined, inputs, saved, frozen, used)) is not None:
        return found
    if joins:
        return op.joined(grad, joined, inputs, saved, call, frozen, used, backend, gradient_map)
    if _is_recorded_in_eager_mode((grad, *inputs)):
        pairs.record(ctx)
        tensors = (grad, *inputs, *saved, *intermediates)
        return EagerBackward.apply(op, call, backend, ctx.late, frozen, used, *tensors)
    _running.late = ctx.late
    try:
        return op.backward(grad, inputs, saved, call, frozen, used, backend, gradient_map)
    finally:
        _running.late = None


def _is_recorded_in_eager_mode(tensors: tuple) -> bool:
    """Whether a backward of these tensors is differentiated, and nothing beside autograd must see it."""
    return torch.is_grad_enabled() and not (torch.compiler.is_compiling() or _torch.is_seen(tensors))


class _Running(threading.local):
    """The late mode of the call whose backward runs in this thread; the backward operator itself takes bools alone."""

    late: Late = None


_running = _Running()


def _saved(ctx) -> tuple:
    """The inputs, the saved outputs and what else was saved.

    An output that was changed in place after it was saved is computed again.
    """
    op, count, end = ctx.op, len(ctx.op.inputs._fields), len(ctx.op.inputs._fields) + len(ctx.op.outputs._fields)
    try:
        kept = ctx.saved_tensors
    except RuntimeError:
        # Hooks on the first output stop autograd from comparing its version, so only a changed input still raises.
        # Where the caller has set hooks, no version was compared, and the error is that of these hooks.
        if not ctx.call.spec.saves_output or not _torch.hook_saved_tensor(ctx, count, lambda t: t):
            raise
        kept = ctx.saved_tensors
    inputs, saved, more = op.inputs(*kept[:count]), op.outputs(*kept[count:end]), kept[end:]
    if saved[0] is None or saved[0]._version <= ctx.version:
        return inputs, saved, more
    with torch.no_grad():
        return inputs, op.outputs(op.forward(inputs, ctx.call, ctx.backend)[0], *saved[1:]), more


class EagerFunction(_torch.Function):
    """The returned outputs of a call, with less host time than the operator takes.

    It is used only outside of compilers, traces and torch.func, for calls that the extension does not record itself
    (:mod:`bcos_kernels.core.kernels`). Where there is a late explanation mode, tensors without values follow the
    returned outputs. They stand for the op's intermediates in the graph: a second derivative has gradients at them,
    which join that of the first output in one backward.
    """

    @staticmethod
    def forward(ctx, op: Op, call, late: Late, backend: str, *inputs):
        inputs = op.inputs(*inputs)
        outputs = op.forward(inputs, call, backend)
        intermediates = [] if late is None else [_stand_in(inputs[0], *kind) for kind in call.intermediates]
        _save(ctx, op, inputs, outputs, call, late, backend, *intermediates)
        returned = outputs[: op.returned]
        if op.returned > 1:
            ctx.mark_non_differentiable(*returned[1:])
        return *returned, *intermediates

    @staticmethod
    def backward(ctx, grad, *others):
        joined = others[ctx.op.returned - 1 :]
        return None, None, None, None, *_backward(ctx, grad, joined, ctx.needs_input_grad[4:])


def _stand_in(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of this shape without values of its own: autograd compares shape and dtype of the gradient with it."""
    return torch.empty_strided(shape, (0,) * len(shape), dtype=dtype, device=x.device)


class EagerBackward(_torch.Function):
    """The gradients of the inputs; its own backward is the second derivative."""

    @staticmethod
    def forward(ctx, op: Op, call, backend: str, late: Late, frozen: bool, needs, grad, *tensors):
        count, end = len(op.inputs._fields), len(op.inputs._fields) + len(op.outputs._fields)
        inputs, saved = op.inputs(*tensors[:count]), op.outputs(*tensors[count:end])
        _save(ctx, op, inputs, saved, call, late, backend, grad)
        ctx.frozen, ctx.needs, ctx.joins = frozen, needs, end < len(tensors)
        return op.backward(grad, inputs, saved, call, frozen, needs, backend)

    @staticmethod
    def backward(ctx, *grads):
        op, call = ctx.op, ctx.call
        inputs, saved, (grad,) = _saved(ctx)
        first, *others = grads
        wanted = ctx.needs_input_grad[6 : 7 + len(inputs)]
        by_kernels = (
            first is not None
            and not any(g is not None for g in others)
            and not torch.is_grad_enabled()  # a third derivative is the reference's
            and not _torch.is_seen((first, grad, *inputs))
        )
        found = op.second(first, grad, inputs, saved, call, ctx.frozen, wanted, ctx.backend) if by_kernels else None
        if found is None:
            found = _second(op, call.spec, ctx.late, ctx.frozen, ctx.needs, grad, inputs, grads, wanted)
        found, joined = found[: len(wanted)], found[len(wanted) :]
        if joined and not ctx.joins:
            more = op.joined(None, joined, inputs, saved, call, False, wanted[1:], ctx.backend)
            found, joined = tuple(map(_sum, found, (None, *more))), ()
        return *(None,) * 6, *found, *(None,) * len(saved), *(joined or (None,) * (len(call.intermediates) * ctx.joins))


class DispatchedFunction(_torch.Function):
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
        return None, *_backward(ctx, grad, (), needs), *(None,) * (len(ctx.needs_input_grad) - 1 - count)


class DispatchedBackward(_torch.Function):
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
        # torch.func.vjp calls this after its transform has ended, which leaves dead wrappers around the tensors
        grad, *inputs = _torch.unwrap_dead_wrappers(ctx.saved_tensors)
        grads, wanted = _torch.unwrap_dead_wrappers(grads), ctx.needs_input_grad[1 : 2 + len(inputs)]
        found = _second(ctx.op, ctx.spec, ctx.late, ctx.frozen, ctx.needs, grad, inputs, grads, wanted)
        return None, *found, *(None,) * (len(ctx.needs_input_grad) - 1 - len(found))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _second(op: Op, spec, late: Late, frozen: bool, needs, grad: Tensor, inputs, grads, wanted) -> tuple:
    """The vector-Jacobian product of the reference's vector-Jacobian product; every higher order is exact.

    ``grads`` are the gradients of those of the inputs. Returns the gradients of ``grad`` and of the inputs, and None
    for those that are not ``wanted``, or on which no gradient depends.
    """
    wanted = (wanted[0], *op.without_added(wanted[1:]))
    grads = tuple(g if need else None for need, g in zip(needs, grads, strict=True))
    if all(g is None for g in grads):
        return (None,) * (1 + len(inputs))
    mode = {"fixed_weights": frozen}

    def reference(*args):
        return op.reference(op.inputs(*args), spec, mode)[0]

    def turn() -> None:
        if late is not None:  # read by each backward: this one is another than that whose result it derives
            mode["fixed_weights"] = bool(late["fixed_weights"])

    with torch.autocast(grad.device.type, enabled=False):
        if op.second_in_parts is not None:
            return op.second_in_parts(_derived, grad, inputs, spec, grads, wanted)
        return _derived(reference, grad, inputs, grads, wanted, turn)


def _derived(function, grad: Tensor, inputs: tuple, grads: tuple, wanted, turn=lambda: None) -> tuple:
    """The vector-Jacobian product of that of ``function``; ``turn`` is called between the two."""
    primals, asked = (grad, *inputs), [g is not None for g in grads]

    def first_order(grad, *inputs):
        return torch.func.vjp(_of_some(inputs, asked, function), *_chosen(inputs, asked))[1](grad)

    with _torch.without_saving_hooks():
        vjp = torch.func.vjp(_of_some(primals, wanted, first_order), *_chosen(primals, wanted))[1]
        turn()
        found = iter(vjp(_chosen(grads, asked)))
    return tuple(next(found) if want else None for want in wanted)


def _below(operator, *args):
    """Calls the operator's kernels below autograd. Outer transforms of torch.func come next and record on their own."""
    with torch.enable_grad(), _torch.below_autograd():
        return operator(*args)


def register(op: Op) -> None:
    """Registers the derivatives of the op's operators with torch's dispatcher."""
    for function, operator in ((DispatchedFunction, op.forward_operator), (DispatchedBackward, op.backward_operator)):
        _register(op, function, operator)


def _register(op: Op, function: type[_torch.Function], operator) -> None:
    def kernel(*args):
        flops.tell_counters(op)
        if _torch.records():
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


def apply(op: Op, inputs: tuple, call, late: Late, backend: str, served: Any = None) -> Sequence[Tensor]:
    """The returned outputs of a call: of the kernels, or of the reference where these lack a derivative.

    ``served`` is what :func:`kernels_of` returned for the call.
    """
    if served is not None and late is None:
        outputs = kernels.outputs_of(served, inputs)
        if outputs is not None:  # else something must see the operators
            tally.fused()
            return outputs
    inputs = op.inputs(*inputs)
    if _torch.is_distributed(inputs):
        return op.reference(inputs, call.spec, late)[: op.returned]
    if _torch.is_followed():
        return _transformed(op, inputs, call, late, backend)
    tally.fused()
    return _eager(op, inputs, call, late, backend)


def kernels_of(op: Op, call, backend: str) -> Any:
    """What serves the call and records it, as :func:`bcos_kernels.core.kernels.of` returns it; None for a compiler."""
    return None if torch.compiler.is_compiling() else kernels.of(op, call, backend, _by_operators)


def _eager(op: Op, inputs, call, late: Late, backend: str) -> tuple[Tensor, ...]:
    if _torch.records():
        return EagerFunction.apply(op, call, late, backend, *inputs)[: op.returned]
    return op.forward(inputs, call, backend)[: op.returned]


def _by_operators(
    op: Op, spec, backend: str, grad: Tensor, inputs: list, saved: list, needs: list[bool], gradient_map: Tensor | None
) -> tuple:
    """The backward of a call of :mod:`.kernels` where it is differentiated, or where operators must be seen."""
    made, used = op.inputs(*inputs), tuple(needs)
    outputs = op.outputs(saved[0], *(inputs[0].new_empty(0) if t is None else t for t in saved[1:]))
    call = op.call(made, spec)
    if _is_recorded_in_eager_mode((grad, *inputs)):
        return EagerBackward.apply(op, call, backend, None, False, used, grad, *inputs, *outputs)
    return op.backward(grad, made, outputs, call, False, used, backend, gradient_map)


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
