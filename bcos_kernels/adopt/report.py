"""Tells what became of the B-cos layers of a model: the backend of each, or why its own forward runs."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..core.candidate import DIRECTIONS
from ..modules import BcosLayer
from ..text import aligned
from ..transform import TRANSFORM, Call, Spec
from . import layer as layers
from .accelerate import check_model, plan_of, variant_of
from .published import Theirs, Variant

__all__ = ["Report", "Row", "arguments", "report", "run_once"]


@dataclass(frozen=True)
class Row:
    """One B-cos layer: its backend, or the reason why its own forward runs."""

    name: str
    kind: str
    backend: str | None
    reason: str | None = None
    measured: bool = False
    """Whether its formula was measured, since its code is not published."""
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
            what = f"left alone: {row.reason}" if row.backend is None else row.backend
            what += " (measured: its code is not published)" if row.measured else ""
            cells.append((row.name, row.kind, what, *(choices if wide else ())))
        lines = [aligned(cells)]
        if not wide and any(TRANSFORM.has_choice(row.backend) for row in self.rows):
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
    check_model(model)
    args = None if example_input is None else arguments(example_input)
    rows = {name: row for name, module in model.named_modules() if (row := _row(name or "(model)", module)) is not None}
    on_gpu = [name for name, row in rows.items() if TRANSFORM.has_choice(row.backend)]
    if args is not None and on_gpu:
        choices = _choices(model, args, on_gpu)
        rows.update((name, replace(rows[name], choices=texts)) for name, texts in choices.items())
    return Report(tuple(rows.values()))


def _choices(model: nn.Module, args: tuple, names: list[str]) -> dict[str, tuple[str, ...]]:
    """What serves each direction of each named layer in its first call of a run of the model, and why."""
    from ..gpu import timing

    found = dict.fromkeys(names, ("not run by the example",) * len(DIRECTIONS))
    called = set()
    with timing.noting() as noted, ExitStack() as hooks:

        def before(module, args) -> None:
            noted.clear()

        def after(module, args, output, name: str) -> None:
            if name not in called and noted:
                called.add(name)
                found[name] = tuple(map(_words, timing.served(next(iter(noted)))))

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


def _row(name: str, module: Theirs) -> Row | None:
    plan, kind, measured = plan_of(module), type(module).__name__, False
    if isinstance(module, BcosLayer):
        found, backend = _overridden(type(module)) or _OWN, module.backend
    elif plan is not None:
        found, backend, measured = plan.objection(module), plan.backend, plan.measured
    elif layers.is_candidate(module):
        found, _ = variant_of(module)
        reason = "not accelerated: accelerate(model) would" if isinstance(found, Variant) else found
        return Row(name, kind, None, reason)
    else:
        return None
    if "forward" in vars(module):
        found = "its forward was assigned on the instance"
    if isinstance(found, str):
        return Row(name, kind, None, found)
    try:
        return Row(name, kind, TRANSFORM.choose(_call(module, found), backend), measured=measured)
    except ValueError as error:
        return Row(name, kind, None, str(error))


_OWN = Variant(True, (1e-6, 0.0), 1e-6, False, frozenset({"max_out"}))
"""The layers of :mod:`bcos_kernels.modules`."""


def _overridden(kind: type) -> str | None:
    """What a subclass of one of our own layers changes of its mathematics."""
    for name in ("forward", "forward_impl"):
        owner = next((c for c in kind.__mro__ if name in vars(c)), None)
        if owner is not None and owner.__module__ != BcosLayer.__module__:
            return f"class {owner.__name__} overrides {name}"
    return None


def _call(module: Theirs, variant: Variant) -> Call:
    """A call of the smallest input, of the weight's dtype and on its device."""
    layer = layers.weighted(module)
    b, exact_two = layers.exponent(module, variant.attributes)
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
    shape: tuple[int, ...] = (1, weight.shape[1])
    zero_padded = True
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
    return Call(
        spec, weight.device.type, shape, tuple(weight.shape), weight.dtype, weight.dtype,
        layer.bias is not None, zero_padded,
    )  # fmt: skip
