"""Puts the fused layers into existing models, takes them out again, and tells what was done.

A recognised module keeps its identity and everything it holds: only its class becomes a subclass of its own
class, with the same name and a fused forward. Values (b, detach, weight, stride ...) are read at each call.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from . import dispatch, probe, protocol, tally
from .backends import gpu
from .backends.gpu.tile import DIRECTIONS
from .modules import BcosLayer
from .protocol import Variant
from .spec import Call, Spec
from .text import aligned

__all__ = ["Report", "Row", "accelerate", "accelerate_as_built", "arguments", "report", "restore", "run_once"]


@dataclass(frozen=True)
class Plan:
    """How one class of layers is accelerated."""

    variant: Variant
    out_dtype: torch.dtype | None
    backend: str | None


def accelerate(model: nn.Module, *, out_dtype: torch.dtype | None = None, backend: str | None = None) -> nn.Module:
    """Accelerates every published B-cos layer of ``model`` in place, the root too, and returns ``model``.

    Recognised are the layers of ``bcos``, of the first version of B-cos networks, of B-cosification, of model
    guidance with its descendants and of the one-file ResNet: by what they hold, and by comparing their own
    forward with the formulas on a few numbers. Whatever computes something else is left alone, see
    :func:`report`. A module runs its own forward while its parts are hooked or replaced. A pickled module
    needs this package to be read again: :func:`restore` the model first where that matters.

    Args:
        out_dtype: dtype of the layers' outputs under autocast; None gives the reference's.
        backend: the backend of every layer, ``None`` for the fastest that serves each call.

    Raises:
        TypeError: ``model`` is no module or ``out_dtype`` no dtype.
        ValueError: ``out_dtype`` is no floating-point dtype or ``backend`` is unknown.
    """
    _check(model, out_dtype, backend)
    for module in list(model.modules()):
        _accelerate(module, out_dtype, backend)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undoes :func:`accelerate` in place and returns ``model``."""
    _check(model, None, None)
    for module in model.modules():
        if _plan(module) is not None:
            module.__class__ = type(module).__bases__[0]
    return model


def _check(model, out_dtype, backend) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: a torch.nn.Module is needed, not {type(model).__name__}")
    if out_dtype is not None and not isinstance(out_dtype, torch.dtype):
        raise TypeError(f"out_dtype={out_dtype!r}: a torch.dtype or None is needed")
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise ValueError(f"out_dtype={out_dtype}: a floating-point dtype or None is needed")
    if backend is not None and backend not in dispatch.BACKENDS:
        raise ValueError(f"backend={backend!r}: allowed are {', '.join(map(repr, dispatch.BACKENDS))} and None")


def _accelerate(module: nn.Module, out_dtype: torch.dtype | None, backend: str | None) -> Variant | str | None:
    """Accelerates one module and returns its variant, or what :func:`_recognise` says against it."""
    plan = _plan(module)
    found = plan.variant if plan else _recognise(module)
    if isinstance(found, Variant):
        origin = type(module).__bases__[0] if plan else type(module)
        try:
            module.__class__ = _subclass(origin, Plan(found, out_dtype, backend))
        except TypeError as error:  # slots, or a class hook of somebody's
            return f"its class cannot be extended: {error}"
    return found


def _recognise(module: nn.Module) -> Variant | str | None:
    """The variant of a layer; the reason why it is left alone; None for a module that is no B-cos layer."""
    if not protocol.is_candidate(module):
        return None
    return protocol.objection(module) or probe.measure(module)


def _plan(module: nn.Module) -> Plan | None:
    return vars(type(module)).get("_bcos_kernels_plan")


@functools.cache
def _subclass(origin: type, plan: Plan) -> type:
    """The subclass of ``origin`` that computes by ``plan``; one for all modules of that class."""
    variant, out_dtype, backend = plan.variant, plan.out_dtype, plan.backend
    own_forward = origin.forward

    @functools.wraps(own_forward)
    def forward(self, *args, **kwargs):
        if origin.forward is not own_forward:  # somebody patched the class since
            return origin.forward(self, *args, **kwargs)
        x = args[0] if len(args) == 1 and not kwargs else None
        reason = protocol.changed(self, variant) if isinstance(x, torch.Tensor) else "it was not called with a tensor"
        if reason is not None:
            if not torch.compiler.is_compiling():
                tally.plain(origin.__name__, reason)
            return own_forward(self, *args, **kwargs)
        dtype = out_dtype if out_dtype is not None and torch.is_autocast_enabled(x.device.type) else None
        return protocol.transform(self, x, variant, dtype, backend)

    def __reduce_ex__(self, version):
        build, args, *state = origin.__reduce_ex__(self, version)
        args = tuple(origin if a is type(self) else a for a in args)
        return _rebuild, (plan, build, args), *state

    names = {
        "forward": forward,
        "__reduce_ex__": __reduce_ex__,
        "__module__": origin.__module__,
        "__qualname__": origin.__qualname__,
        "__doc__": origin.__doc__,
        "_bcos_kernels_plan": plan,
    }
    return types.new_class(origin.__name__, (origin,), exec_body=lambda body: body.update(names))


def _rebuild(plan: Plan, build: Callable, args: tuple) -> nn.Module:
    """Unpickles and copies an accelerated module: made as its own class makes it, then accelerated."""
    module = build(*args)
    module.__class__ = _subclass(type(module), plan)
    return module


@contextmanager
def accelerate_as_built(*, out_dtype: torch.dtype | None = None, backend: str | None = None) -> Iterator[None]:
    """Within the context every B-cos layer is accelerated, and counted, when it becomes part of another module."""
    _check(nn.Identity(), out_dtype, backend)
    left_alone: WeakSet[nn.Module] = WeakSet()

    def on_registration(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is None or _plan(module) is not None:
            return
        found = _accelerate(module, out_dtype, backend)
        if isinstance(found, Variant):
            tally.accelerated()
        elif found is not None and module not in left_alone:
            left_alone.add(module)
            tally.left_alone(type(module).__name__, found)

    handle = register_module_module_registration_hook(on_registration)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Row:
    """One B-cos layer: its backend, or the reason why its own forward runs."""

    name: str
    kind: str
    backend: str | None
    reason: str | None = None
    choices: tuple[str, ...] = ()
    """The kernels that serve its forward, explanation and training, and why; known of an example, on ``triton``."""


@dataclass(frozen=True)
class Report:
    """What :func:`report` found; ``str()`` is a table."""

    rows: tuple[Row, ...]

    @property
    def accelerated(self) -> int:
        """Layers that run on a backend of this package."""
        return sum(row.backend is not None for row in self.rows)

    @property
    def left_alone(self) -> int:
        """B-cos layers that run their own forward."""
        return len(self.rows) - self.accelerated

    def __str__(self) -> str:
        if not self.rows:
            return "no B-cos layers"
        wide = any(row.choices for row in self.rows)
        cells = [("module", "class", "backend", *(DIRECTIONS if wide else ()))]
        for row in self.rows:
            choices = row.choices or ("",) * len(DIRECTIONS)
            cells.append((row.name, row.kind, row.backend or f"left alone: {row.reason}", *(choices if wide else ())))
        lines = [aligned(cells)]
        if not wide and any(row.backend in _ON_GPU for row in self.rows):
            lines.append("which kernels serve a layer on a GPU depends on the input: report(model, example_input)")
        backends = Counter(r.backend for r in self.rows if r.backend)
        served = ", ".join(f"{count} by {name}" for name, count in backends.items())
        total = f"{len(self.rows)} B-cos layers: {self.accelerated} accelerated"
        return "\n".join([*lines, f"{total}{f' ({served})' if served else ''}, {self.left_alone} left alone"])


def report(model: nn.Module, example_input: torch.Tensor | tuple | None = None) -> Report:
    """Every B-cos layer of ``model``: the backend that serves inputs like its weight, or why none does.

    With an example (a tensor, or a tuple of the model's arguments) the model runs on it once, without gradients and
    leaving buffers and random numbers as they were, and layers on a GPU tell which kernels serve such an input.

    Raises:
        TypeError: ``model`` is no module, or ``example_input`` neither a tensor nor a tuple with one.
    """
    _check(model, None, None)
    args = None if example_input is None else arguments(example_input)
    rows = {name: row for name, module in model.named_modules() if (row := _row(name or "(model)", module)) is not None}
    on_gpu = [name for name, row in rows.items() if row.backend in _ON_GPU]
    if args is not None and on_gpu:
        choices = _choices(model, args, on_gpu)
        rows.update((name, replace(rows[name], choices=texts)) for name, texts in choices.items())
    return Report(tuple(rows.values()))


_ON_GPU = ("gpu", *gpu.BACKENDS)


def _choices(model: nn.Module, args: tuple, names: list[str]) -> dict[str, tuple[str, ...]]:
    """What serves each direction of each named layer in its first call of a run of the model, and why."""
    from .backends.gpu import trials

    found = dict.fromkeys(names, ("not run by the example",) * len(DIRECTIONS))
    called = set()
    with trials.noting() as noted, ExitStack() as hooks:

        def before(module, args) -> None:
            noted.clear()

        def after(module, args, output, name: str) -> None:
            if name not in called and noted:
                called.add(name)
                first = next(iter(noted))
                found[name] = tuple(map(_words, trials.served(first.problem, first.backends)))

        for name in names:
            layer = model.get_submodule(name)
            hooks.callback(layer.register_forward_pre_hook(before).remove)
            hooks.callback(layer.register_forward_hook(functools.partial(after, name=name)).remove)
        with torch.no_grad():
            run_once(model, args)
    return found


def _words(choice) -> str:
    return f"{choice} ({choice.reason})"


def arguments(example_input) -> tuple:
    """The positional arguments of a model; raises TypeError for neither a tensor nor a tuple with one."""
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    if not any(isinstance(arg, torch.Tensor) for arg in args):
        raise TypeError(f"example_input={example_input!r}: a tensor or a tuple of the model's arguments is needed")
    return args


def run_once(model: nn.Module, args: tuple):
    """``model(*args)`` in its present mode, with its buffers and the random numbers left as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors = itertools.chain(model.parameters(), buffers.values(), (a for a in args if isinstance(a, torch.Tensor)))
    with torch.random.fork_rng({t.get_device() for t in tensors if t.is_cuda}):
        return torch.func.functional_call(model, buffers, args)


def _row(name: str, module: nn.Module) -> Row | None:
    plan, kind = _plan(module), type(module).__name__
    reason = None
    if isinstance(module, BcosLayer):
        variant, backend = _OWN, module.backend
        reason = protocol.overrides(type(module), protocol.MATHEMATICS)
    elif plan is not None:
        variant, backend = plan.variant, plan.backend
        reason = protocol.changed(module, variant)
    else:
        found = _recognise(module)
        reason = "not accelerated: accelerate(model) would" if isinstance(found, Variant) else found
        return None if found is None else Row(name, kind, None, reason)
    if "forward" in vars(module):
        reason = "its forward was assigned on the instance"
    if reason is not None:
        return Row(name, kind, None, reason)
    try:
        return Row(name, kind, dispatch.choose(_call(module, variant), backend))
    except ValueError as error:
        return Row(name, kind, None, str(error))


_OWN = Variant(True, (1e-6, 0.0), 1e-6, False, frozenset({"max_out"}), nn.Module)
"""The layers of :mod:`bcos_kernels.modules`."""


def _call(module: nn.Module, variant: Variant) -> Call:
    """A call of the smallest input, of the weight's dtype and on its device."""
    layer = protocol.weighted(module)
    b, exact_two = protocol.exponent(module, variant.attributes)
    weight = layer.weight
    spec = Spec(
        max_out=module.max_out if "max_out" in variant.attributes else 1,
        b=None if isinstance(b, torch.Tensor) else float(b),
        unit=variant.normalize_weights,
        norm_eps=variant.norm_eps,
        cos_eps=variant.cos_eps,
        exact_two=exact_two,
        out_dtype=weight.dtype,
    )
    shape, zero_padded = (1, weight.shape[1]), True
    if isinstance(layer, nn.Conv2d):
        padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
        geometry = {
            "stride": layer.stride,
            "padding": padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
        }
        spec = Spec(**{**vars(spec), **geometry})
        shape = (
            1,
            layer.in_channels,
            *(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)),
        )
        zero_padded = layer.padding_mode == "zeros" or layer.padding in ((0, 0), "valid")
    return Call(spec, weight.device.type, weight.dtype, weight.dtype, shape, tuple(weight.shape), zero_padded)
