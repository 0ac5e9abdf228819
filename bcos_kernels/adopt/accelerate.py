"""Puts the fused layers into existing models and takes them out again.

A recognised module keeps its identity and everything it holds: only its class becomes a subclass of its own class,
with the same name and a fused forward. Values (b, detach, weight, stride ...) are read at each call, and so is whether
the code is still the one that was recognised.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .. import tally
from ..modules import BcosLayer
from ..transform import TRANSFORM
from . import layer
from .published import Variant

__all__ = [
    "UNPUBLISHED",
    "Plan",
    "accelerate",
    "accelerate_as_built",
    "check_model",
    "plan_of",
    "restore",
    "variant_of",
]

UNPUBLISHED = ("leave", "measure")
"""What becomes of layers whose code is not published."""


@dataclass(frozen=True)
class Plan:
    """How one class of layers is accelerated."""

    out_dtype: torch.dtype | None
    backend: str | None
    measured: bool
    """Whether the formula was measured, since the code is not published."""

    def objection(self, module: nn.Module, x: Tensor | None = None) -> Variant | str:
        """The variant by which the module is computed now; or why its own forward must run for the input x."""
        return _measurements().objection(module, x) if self.measured else layer.objection(module, x)


def accelerate(
    model: nn.Module,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
    unpublished: str = "leave",
) -> nn.Module:
    """Accelerates every published B-cos layer of ``model`` in place, the root too, and returns ``model``.

    Recognised by their code are the layers of ``bcos``, of the first version of B-cos networks, of B-cosification, of
    model guidance with its descendants, of the B-cos language models and of the one-file ResNet. Whatever else is left
    alone, see :func:`report`. A module runs its own forward while its parts are hooked or its code is changed. A
    pickled module needs this package to be read again: :func:`restore` the model first where that matters.

    Args:
        out_dtype: dtype of the layers' outputs under autocast; None gives the reference's.
        backend: the backend of every layer, ``None`` for the fastest that serves each call.
        unpublished: ``"leave"`` leaves a layer of unpublished code alone. ``"measure"`` compares what it computes with
            the formulas on a few numbers and accelerates it if one of them agrees: a measurement, not a proof.

    Raises:
        TypeError: ``model`` is no module or ``out_dtype`` no dtype.
        ValueError: ``out_dtype`` is no floating-point dtype, or ``backend`` or ``unpublished`` is unknown.

    Warns:
        UserWarning: no layer of the model is accelerated.
    """
    check_model(model)
    check_options(out_dtype, backend, unpublished)
    found = [accelerate_module(module, out_dtype, backend, unpublished) for module in list(model.modules())]
    if not any(isinstance(what, Variant) for what in found) and not any(
        isinstance(module, BcosLayer) for module in model.modules()
    ):
        reasons = Counter(what for what in found if what is not None)
        why = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(3)) or "it has no B-cos layers"
        warnings.warn(f"accelerate({type(model).__name__}): nothing is accelerated: {why}", stacklevel=2)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undoes :func:`accelerate` in place and returns ``model``."""
    check_model(model)
    for module in model.modules():
        if plan_of(module) is not None:
            module.__class__ = _without_plan(_class_of(module))
    return model


def _class_of(module: nn.Module) -> Any:
    return type(module)


def check_model(model) -> None:
    """Raises TypeError for what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: a torch.nn.Module is needed, not {type(model).__name__}")


def check_options(out_dtype, backend, unpublished) -> None:
    """Raises TypeError or ValueError for an option of :func:`accelerate` that is not allowed."""
    if out_dtype is not None and not isinstance(out_dtype, torch.dtype):
        raise TypeError(f"out_dtype={out_dtype!r}: a torch.dtype or None is needed")
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise ValueError(f"out_dtype={out_dtype}: a floating-point dtype or None is needed")
    TRANSFORM.check_backend(backend)
    if unpublished not in UNPUBLISHED:
        raise ValueError(f"unpublished={unpublished!r}: allowed are {' and '.join(map(repr, UNPUBLISHED))}")


def accelerate_module(module: nn.Module, out_dtype, backend, unpublished: str) -> Variant | str | None:
    """Accelerates one module and returns its variant, or what :func:`variant_of` says against it."""
    if not layer.is_candidate(module):
        return None
    found, measured = variant_of(module, unpublished)
    if isinstance(found, Variant):
        try:
            plan = Plan(out_dtype, backend, measured)
            module.__class__ = _subclass(_without_plan(_class_of(module)), plan)
            plan.objection(module)  # reads the code, which a compiled call could not
        except TypeError as error:  # slots, or a class hook of somebody's
            return f"its class cannot be extended: {error}"
    return found


def variant_of(module: nn.Module, unpublished: str = "leave") -> tuple[Variant | str, bool]:
    """The variant of a candidate, or why it has none; and whether that was measured."""
    found = layer.variant_of(module)
    if isinstance(found, str) and unpublished == "measure":
        measured = _measurements().measure(module)
        return measured if isinstance(measured, str) else measured.variant, True
    return found, False


def _measurements() -> ModuleType:
    """The module that measures: imported for those who ask for it."""
    from . import measure

    return measure


def plan_of(module: nn.Module) -> Plan | None:
    """How the module is accelerated, also where another class was put on top; None where it is not."""
    return getattr(type(module), "_bcos_kernels_plan", None)


@functools.cache
def _without_plan(kind: type) -> type:
    """The class as it was before it was accelerated, with the classes that were put on top since."""
    if "_bcos_kernels_plan" in vars(kind):
        return kind.__bases__[0]
    if not hasattr(kind, "_bcos_kernels_plan"):
        return kind
    bases = tuple(_without_plan(base) for base in kind.__bases__)
    names = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return types.new_class(kind.__name__, bases, exec_body=lambda body: body.update(names))


@functools.cache
def _subclass(origin: Any, plan: Plan) -> type:
    """The subclass of ``origin`` that computes by ``plan``; one for all modules of that class."""
    out_dtype, backend, objection = plan.out_dtype, plan.backend, plan.objection

    def forward(self, *args, **kwargs):
        x = args[0] if len(args) == 1 and not kwargs else None
        found = objection(self, x) if isinstance(x, Tensor) else "it was not called with one tensor"
        if isinstance(found, str):
            if not torch.compiler.is_compiling():
                tally.plain(origin.__name__, found)
            return origin.forward(self, *args, **kwargs)
        dtype = out_dtype if out_dtype is not None and torch.is_autocast_enabled(x.device.type) else None
        return layer.transform(self, x, found, dtype, backend)

    def __reduce_ex__(self, version):
        build, args, *state = origin.__reduce_ex__(self, version)
        args = tuple(origin if a is type(self) else a for a in args)
        return _rebuild, (plan, build, args), *state

    def __setstate__(self, state):
        origin.__setstate__(self, state)
        if layer.weighted(self) is not None:
            objection(self)  # reads the code, which a compiled call could not

    def __prepare_scriptable__(self):
        raise RuntimeError(
            "torch.jit.script would compile the layer's own forward, not the fused one: "
            "call bcos_kernels.restore(model) first, or use torch.jit.trace or torch.export instead"
        )

    forward.__name__, forward.__qualname__ = "forward", f"{origin.__qualname__}.forward"
    forward.__doc__ = origin.forward.__doc__
    names = {
        "forward": forward,
        "__reduce_ex__": __reduce_ex__,
        "__setstate__": __setstate__,
        "__prepare_scriptable__": __prepare_scriptable__,
        "__module__": origin.__module__,
        "__qualname__": origin.__qualname__,
        "__doc__": origin.__doc__,
        "_bcos_kernels_plan": plan,
    }
    return types.new_class(origin.__name__, (origin,), exec_body=lambda body: body.update(names))


def _rebuild(plan: Plan, build: Callable, args: tuple) -> nn.Module:
    """Unpickles and copies an accelerated module: made as its own class makes it, then accelerated."""
    module = build(*args)
    module.__class__ = _subclass(_class_of(module), plan)
    return module


@contextmanager
def accelerate_as_built(*, out_dtype: torch.dtype | None = None, backend: str | None = None) -> Iterator[None]:
    """Within the context every B-cos layer is accelerated, and counted, when it becomes part of another module."""
    check_options(out_dtype, backend, "leave")
    left_alone: WeakSet[nn.Module] = WeakSet()

    def on_registration(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is None or plan_of(module) is not None:
            return
        found = accelerate_module(module, out_dtype, backend, "leave")
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
