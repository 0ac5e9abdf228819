"""Accelerates the layers, the norms, the attentions and the gates of existing models, and restores them.

A recognised module stays the same object and keeps everything it holds. Only its class changes: to a subclass of its
own class, with the same name and a fused forward. Each call reads the present values (b, detach, weight, stride ...)
and checks that the code is still the code that was recognised.
"""

from __future__ import annotations

import inspect
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .. import tally
from ..core.checks import check_model, flag
from ..modules import Detachable
from ..text import many
from ..transform import TRANSFORM
from .kind import Kind
from .kinds import KINDS, kind_of
from .published import PARAMETRIZED

__all__ = ["UNPUBLISHED", "Plan", "accelerate", "accelerate_as_built", "plan_of", "restore", "variant_of"]

UNPUBLISHED = ("leave", "measure")
"""What to do with layers whose code is not published."""

LAYER = "layer"
LAYERS = (LAYER, "alignment")
"""The kinds that give the models their names: without a layer of one, there is nothing to accelerate a model for."""


@dataclass(frozen=True)
class Plan:
    """How one class of modules is accelerated."""

    out_dtype: torch.dtype | None
    backend: str | None
    measured: bool
    """Whether the formula was found by measurement, because the code is not published."""
    name: str = LAYER
    """The name of the class's kind. It has a default for the pickles of models from before there were others."""
    pairs: bool = False

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def find(self) -> Callable[..., Any]:
        """The function that says at every call what the module computes now; see :class:`Kind`."""
        return _measurements().find if self.measured else self.kind.find

    def read(self, module: nn.Module) -> None:
        """Reads the module's code now, because a compiled call could not read it."""
        (_measurements().measure if self.measured else self.kind.variant_of)(module)


def accelerate(
    model: nn.Module,
    *,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
    unpublished: str = "leave",
    pairs: bool = False,
) -> nn.Module:
    """Accelerates in place each published layer, norm, attention and gate of ``model``, itself included; returns it.

    They are recognised by their code: those of ``bcos``, of the first version of B-cos networks, of B-cosification,
    of model guidance and the repositories derived from it, of the B-cos language models, of CoDA-Nets, whose layers are
    of dynamic alignment units, and of the smaller repositories that ``docs/coverage.md`` lists.
    All others are left alone; :func:`report` says why. An accelerated module runs its own forward while hooks see the
    calls of its parts or its code is changed. Unpickling an accelerated module needs this package: where it may be
    missing, :func:`restore` the model before pickling it.

    Args:
        model: any module.
        out_dtype: dtype of the layers' outputs under autocast, and of norms whose input has it; None gives the
            reference's.
        backend: the backend of every layer and norm, which raises an error in a call that it cannot serve; None
            chooses the fastest that serves each call. PyTorch's own operators serve attentions and gates whatever it
            is.
        unpublished: ``"leave"`` leaves layers of unpublished code alone. ``"measure"`` compares their results with
            those of the published formulas on a few inputs and accelerates a layer that agrees with one of them. This
            is not a proof: on other inputs such a layer may compute something else.
        pairs: whether a norm over the batch, or over all of its input, leaves the last pass of its backward to the
            B-cos layer in front of it, which reads the same tensors anyway. A training step then moves fewer bytes,
            and the gradients of parameters and inputs stay what they are. Two things are given up. The layer's output
            y may feed nothing beside that norm, else the backward raises an error; and where
            ``torch.autograd.grad`` is asked for the gradient of y together with others, it returns that of the norm's
            output in its place. Hooks of y, ``y.retain_grad()``, a gradient of y alone and derivatives of gradients
            are formed as usual.

    Raises:
        TypeError: ``model`` is not a module, ``out_dtype`` is not a dtype, or ``pairs`` is not a bool.
        ValueError: ``out_dtype`` is not a floating-point dtype, or ``backend`` or ``unpublished`` is unknown.

    Warns:
        UserWarning: no B-cos or dynamic alignment layer of the model was accelerated, unless the model is itself a
            norm, an attention or a gate.
    """
    check_model(model)
    check_options(out_dtype, backend, unpublished, pairs)
    done = [accelerate_module(module, out_dtype, backend, unpublished, pairs) for module in list(model.modules())]
    for module in model.modules():
        if isinstance(module, Detachable) and hasattr(module, "pairs"):  # a norm of this package
            cast(Any, module).pairs = pairs
    _warn_without_layers(model, done)
    return model


def _warn_without_layers(model: nn.Module, done: list[tuple[Kind | None, Any]]) -> None:
    """Warns where no layer is accelerated; ``done`` is what :func:`accelerate_module` returned of each module."""
    layers = [what for kind, what in done if kind is not None and kind.name in LAYERS]
    others = Counter(kind.noun for kind, what in done if kind and kind.name not in LAYERS and not isinstance(what, str))
    own = any(isinstance(module, Detachable) and module.kind in LAYERS for module in model.modules())
    if all(isinstance(what, str) for what in layers) and not own and plan_of(model) is None:
        why = "; ".join(f"{count}: {reason}" for reason, count in Counter(layers).most_common(3))
        rest = " and ".join(many(count, noun) for noun, count in others.items())
        what = (
            f"{rest} {'is' if others.total() == 1 else 'are'} accelerated, but no B-cos layer"
            if others
            else "nothing is accelerated"
        )
        warnings.warn(f"accelerate({type(model).__name__}): {what}: {why or _NO_LAYERS}", stacklevel=3)


_NO_LAYERS = (
    "it has no B-cos layers: none of its modules holds an exponent b, an explanation mode, and a weight of its own "
    "or of its part .linear"
)


def restore(model: nn.Module) -> nn.Module:
    """Undoes :func:`accelerate` in place and returns ``model``; modules that are not accelerated stay as they are.

    Args:
        model: any module.

    Raises:
        TypeError: ``model`` is not a module.
    """
    check_model(model)
    for module in model.modules():
        if plan_of(module) is not None:
            module.__class__ = _without_plan(_class_of(module))
    return model


def _class_of(module: nn.Module) -> Any:
    return type(module)


def check_options(out_dtype, backend, unpublished, pairs=False) -> None:
    """Raises TypeError or ValueError for an option of :func:`accelerate` that is not allowed."""
    if out_dtype is not None and not isinstance(out_dtype, torch.dtype):
        raise TypeError(f"out_dtype={out_dtype!r}: a torch.dtype or None is needed")
    if out_dtype is not None and not out_dtype.is_floating_point:
        raise ValueError(f"out_dtype={out_dtype}: a floating-point dtype or None is needed")
    TRANSFORM.check_backend(backend)
    flag("pairs", pairs)
    if unpublished not in UNPUBLISHED:
        raise ValueError(f"unpublished={unpublished!r}: allowed are {' and '.join(map(repr, UNPUBLISHED))}")


def accelerate_module(
    module: nn.Module, out_dtype, backend, unpublished: str, pairs: bool = False
) -> tuple[Kind | None, Any]:
    """Accelerates one module. Returns its kind, None if it is no candidate; its variant, or why it is left alone."""
    kind = kind_of(module)
    if kind is None:
        return None, None
    found, measured = variant_of(kind, module, unpublished)
    if not isinstance(found, str):
        try:
            plan = Plan(out_dtype, backend, measured, kind.name, pairs)
            module.__class__ = _subclass(_without_plan(_class_of(module)), plan)
            plan.read(module)
        except TypeError as error:  # the class has slots, or a third-party hook of the class refused
            return kind, f"its class cannot be extended: {error}"
    return kind, found


def variant_of(kind: Kind, module: nn.Module, unpublished: str = "leave") -> tuple[Any, bool]:
    """The variant of a candidate, or the reason why it has none; and whether this was measured."""
    found = kind.variant_of(module)
    if isinstance(found, str) and unpublished == "measure" and kind.measurable:
        measured = _measurements().measure(module)
        return measured if isinstance(measured, str) else measured.variant, True
    return found, False


def _measurements() -> ModuleType:
    """The module ``measure``, imported only when a measurement is asked for."""
    from . import measure

    return measure


def plan_of(module: nn.Module) -> Plan | None:
    """How the module is accelerated, even if its class was extended again afterwards; None if it is not accelerated."""
    return getattr(type(module), "_bcos_kernels_plan", None)


def _without_plan(cls: Any) -> Any:
    """The class without its acceleration; subclasses that were derived from the accelerated class are kept."""
    if "_bcos_kernels_plan" in vars(cls):
        return cls.__bases__[0]
    if not hasattr(cls, "_bcos_kernels_plan"):
        return cls
    if cls.__module__ == PARAMETRIZED:  # torch removes it again by setting the class to the first of its bases
        bases = tuple(map(_without_plan, cls.__bases__))
        names = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        return types.new_class(cls.__name__, bases, exec_body=lambda body: body.update(names))
    if (made := _made(cls, "_bcos_kernels_restored", cls)) is not None:
        return made
    meta: Any = type("Restored", (type(cls),), {"mro": _restored_mro})
    names = {"_bcos_kernels_restored": cls, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return meta(cls.__name__, (cls,), names)


def _made(cls: Any, name: str, value: object) -> Any:
    """The subclass that was made of a class with this value of the attribute ``name``; None where none was made.

    Nothing but Python's own list of subclasses is searched, which holds them weakly: a table of them would keep the
    classes that torch makes for parametrized modules, and each of these holds its module.
    """
    return next((made for made in type.__subclasses__(cls) if vars(made).get(name) == value), None)


def _restored_mro(restored: Any) -> list[type]:
    """The method resolution order of a class whose ``super()``, in methods of its bases too, finds no acceleration."""
    mro = type.mro(restored)
    if "_bcos_kernels_restored" in vars(restored):
        mro = [cls for cls in mro if "_bcos_kernels_plan" not in vars(cls)]
    return mro


def _subclass(origin: Any, plan: Plan) -> type:
    """The subclass of ``origin`` that computes by ``plan``; all modules of that class share it."""
    if (made := _made(origin, "_bcos_kernels_plan", plan)) is not None:
        return made
    out_dtype, backend, find = plan.out_dtype, plan.backend, plan.find
    paired = plan.kind.run_paired if plan.pairs else None
    run = paired or plan.kind.run
    repeat = None if plan.measured or paired else plan.kind.repeat
    again = None if repeat is None else plan.kind.again
    is_compiling = torch.compiler.is_dynamo_compiling

    def forward(self, *args, **kwargs):
        x = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(x, Tensor):
            repeats = repeat is not None and not is_compiling()
            if repeats and again is not None:
                y = again(self, x)
                if y is not None:
                    tally.counts[0] += 1  # tally.fused() without a step into it
                    return y
            dtype = out_dtype if out_dtype is not None and torch.is_autocast_enabled(x.device.type) else None
            if repeats:
                y = repeat(self, x, dtype, backend)
                if y is not None:
                    return y
            found = find(self, x, backend)
        else:
            found = "it was not called with one tensor"
        if isinstance(found, str):
            if not torch.compiler.is_compiling():
                tally.plain(origin.__name__, found)
            found = None
        if found is None:
            return origin.forward(self, *args, **kwargs)
        return run(self, x, found, dtype, backend)

    def __reduce_ex__(self, version):
        build, args, *state = origin.__reduce_ex__(self, version)
        if type(self) is not accelerated:  # a class that was derived from it is copied as any other class is
            return build, args, *state
        args = tuple(origin if a is type(self) else a for a in args)
        return _rebuild, (plan, build, args), *state

    def __setstate__(self, state):
        origin.__setstate__(self, state)
        plan.read(self)

    def __prepare_scriptable__(self):
        raise RuntimeError(
            "torch.jit.script would compile the layer's own forward instead of the fused one: "
            "call bcos_kernels.restore(model) first, or use torch.jit.trace or torch.export instead"
        )

    forward.__name__, forward.__qualname__ = "forward", f"{origin.__qualname__}.forward"
    forward.__doc__ = origin.forward.__doc__
    forward.__signature__ = inspect.signature(origin.forward)  # type: ignore[attr-defined]  # torch.export goes by it
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
    accelerated = types.new_class(origin.__name__, (origin,), exec_body=lambda body: body.update(names))
    return accelerated


def _rebuild(plan: Plan, build: Callable, args: tuple) -> nn.Module:
    """Unpickles or copies an accelerated module: its own class builds it, then it is accelerated."""
    module = build(*args)
    module.__class__ = _subclass(_class_of(module), plan)
    return module


@contextmanager
def accelerate_as_built(*, out_dtype: torch.dtype | None = None, backend: str | None = None) -> Iterator[None]:
    """A context in which each layer, norm, attention and gate is accelerated, and counted, once it is in a module."""
    check_options(out_dtype, backend, "leave")
    left_alone: WeakSet[nn.Module] = WeakSet()

    def on_registration(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is None or plan_of(module) is not None:
            return
        kind, found = accelerate_module(module, out_dtype, backend, "leave")
        if kind is None:
            return
        if not isinstance(found, str):
            tally.accelerated(kind.name)
        elif module not in left_alone:
            left_alone.add(module)
            tally.left_alone(type(module).__name__, found, kind.name)

    handle = register_module_module_registration_hook(on_registration)
    try:
        yield
    finally:
        handle.remove()
