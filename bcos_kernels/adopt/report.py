"""Reports on the layers, norms, attentions and gates of a model: what serves each, or why its own forward runs."""

from __future__ import annotations

import functools
import itertools
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from ..core.candidate import DIRECTIONS
from ..core.checks import check_model
from ..modules import Detachable
from .accelerate import plan_of, variant_of
from .kinds import KINDS, kind_of
from .published import Theirs
from .rows import Report, Row

__all__ = ["TORCH", "arguments", "report", "run_once"]

TORCH = "torch"
"""What a report calls the backend of modules that PyTorch's own operators serve."""


def report(model: nn.Module, example_input: torch.Tensor | tuple | None = None) -> Report:
    """Reports on every B-cos layer, norm, attention and gate of ``model``: what serves it, or why its own forward runs.

    An input of the weight's dtype and device is assumed. With ``example_input`` the model also runs on it once, to
    report which kernels serve each layer on a GPU: without gradients, and without a change to buffers or to the state
    of the random number generators.

    Args:
        model: any module, accelerated or not.
        example_input: a tensor, such as images ``[N, C, H, W]``, or a tuple of the model's positional arguments.

    Returns:
        The report. ``print`` shows its summary; ``.table()`` has a line for each module, ``.rows`` the same as objects.

    Raises:
        TypeError: ``model`` is not a module, or ``example_input`` is neither a tensor nor a tuple with a tensor in it.
    """
    check_model(model)
    args = None if example_input is None else arguments(example_input)
    rows = {name: row for name, module in model.named_modules() if (row := _row(name or "(model)", module)) is not None}
    on_gpu = [name for name, row in rows.items() if row.has_choice]
    if args is not None and on_gpu:
        choices = _choices(model, args, on_gpu)
        rows.update((name, replace(rows[name], choices=texts)) for name, texts in choices.items())
    return Report(tuple(rows.values()))


def _choices(model: nn.Module, args: tuple, names: list[str]) -> dict[str, tuple[str, ...]]:
    """For each named layer, the choice for each direction of its first call in a run of the model, and why."""
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
    """The model's positional arguments. Raises TypeError unless they are a tensor or a tuple with a tensor in it."""
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    if not any(isinstance(arg, torch.Tensor) for arg in args):
        raise TypeError(f"example_input={example_input!r}: a tensor or a tuple of the model's arguments is needed")
    return args


def run_once(model: nn.Module, args: tuple):
    """``model(*args)`` in its present mode; its buffers and the random number generators are left as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors = itertools.chain(model.parameters(), buffers.values(), (a for a in args if isinstance(a, torch.Tensor)))
    with torch.random.fork_rng({t.get_device() for t in tensors if t.is_cuda}):
        return torch.func.functional_call(model, buffers, args)


def _row(name: str, module: Theirs) -> Row | None:
    plan, title, measured, backend = plan_of(module), type(module).__name__, False, None
    if plan is not None:
        kind, backend, measured = plan.kind, plan.backend, plan.measured
        found = plan.find(module, None, backend)
    elif (own := _ours(module)) is not None:
        kind, found = own
        backend = module.backend
    elif (candidate := kind_of(module)) is not None:
        kind = candidate
        found, _ = variant_of(kind, module)
        found = found if isinstance(found, str) else "not accelerated: accelerate(model) would"
        return Row(name, title, None, found, kind=kind.name)
    else:
        return None
    if "forward" in vars(module):
        found = "its forward was assigned on the instance"
    if isinstance(found, str):
        return Row(name, title, None, found, kind=kind.name)
    try:
        served = kind.op.choose(kind.call(module, found), backend) if kind.op and kind.call else TORCH
    except (TypeError, ValueError) as error:
        return Row(name, title, None, str(error), kind=kind.name)
    return Row(
        name, title, served, measured=measured, kind=kind.name, note=kind.note(module, found),
        has_choice=kind.op is not None and kind.op.has_choice(served),
    )  # fmt: skip


def _ours(module: Theirs):
    """The kind of a module of this package, and what its kind's ``ours`` says of it; None for all others."""
    kind = KINDS.get(module.kind) if isinstance(module, Detachable) else None
    found = None if kind is None else kind.ours(module)
    return None if found is None else (kind, found)
