"""Measures which published formula a layer of unknown code computes: its own forward, in float64, beside the formulas.

A measurement is no proof: a layer may do something else where it was not looked. So it is made for layers of somebody
who asks for it, with ``accelerate(model, unpublished="measure")``, and the report says of each that it was measured.
A formula must reproduce the outputs and the gradients: in training and in evaluation, in both explanation modes, for
inputs of every rank that the layer takes, small and large, and for exponents up to 8. The layer, its hooks and the
state of the random number generator are not touched.
"""

from __future__ import annotations

import itertools
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import layer as layers
from .published import OPTIONAL, SLOW_NORM, Theirs, Variant, published_mro

__all__ = ["measure", "objection"]

TOLERANCE = 1e-8
"""Relative, in float64; the smallest difference between two variants is near 5e-7."""

EXPONENTS = (1.5, 1.0, 2.0, 2.5, 4.0, 8.0)
"""The first tells every epsilon; the others confirm the shortcuts and that no exponent is capped."""

ROWS = (1.0, 1e-3, 1e-8, 1e3)
"""Magnitudes of the inputs: each epsilon of a norm shows in one of them, and a clamp of large values in the last."""

NORM_EPSILONS = ((1e-6, 0.0), (0.0, 1e-12))
COSINE_EPSILONS = (1e-6, 0.0)


class Measured(NamedTuple):
    """What a measurement found."""

    variant: Variant
    ranks: frozenset[int]
    """The numbers of dimensions of the inputs for which the layer computes the variant."""


_results: dict[tuple, Measured | str] = {}


def objection(module: Theirs, x: Tensor | None = None) -> Variant | str:
    """The variant that was measured for the module as it is now; or why its own forward must run for the input x."""
    found = measure(module)
    if isinstance(found, str):
        return found
    if x is not None and x.dim() not in found.ranks:
        return f"it computes something else for inputs of {x.dim()} dimensions"
    linear, variant = layers.weighted(module), found.variant
    return layers.changed(module, linear, x) or layers.unusual_exponent(module, variant.attributes) or variant


def measure(module: Theirs) -> Measured | str:
    """The variant that a candidate computes, or why none of them; measured once for layers that are alike."""
    if (reason := _unmeasurable(module)) is not None:
        return reason
    key = _key(module)
    if key not in _results:
        # the CPU for everything, whatever the device under which a model is being built
        with (
            torch.device("cpu"),
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            _one_thread(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            _results[key] = _measure(module)
    return _results[key]


def _unmeasurable(module: Theirs) -> str | None:
    """What the structure of a candidate alone rules out."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a compiled TorchScript module"
    if "forward" in vars(module):
        return "its forward was assigned on the instance"
    layer = layers.weighted(module)
    if layer is None:
        return f"its .linear is {type(module._modules['linear']).__name__}, neither nn.Conv2d nor nn.Linear"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return "its weight is not initialised yet"
    extra = set(module._modules) - {"linear", "dynamic_multiplication"}
    extra |= (module._parameters.keys() | module._buffers.keys()) - {"b", "scale"}
    if layer is module:
        extra -= {"weight", "bias"}
    return f"it also holds {', '.join(sorted(extra))}" if extra else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Waking a pool of threads costs more than these sums do, and far more where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _key(module: Theirs) -> tuple:
    """What can change the formula: code, plain attributes, functions on the instance, sizes; no tensor's values."""
    layer = layers.weighted(module)
    parts = (module, *module._modules.values())
    code = tuple(_functions(type(part)) for part in parts)
    learned = isinstance(module.b, Tensor)
    return code, tuple(map(_plain, parts)), learned, layer.bias is None, tuple(layer.weight.shape)


def _functions(kind: type) -> tuple:
    """A class and everything callable that it has from outside of torch, by identity."""
    mro = published_mro(kind)
    own = (c for c in mro if c.__module__.partition(".")[0] not in ("torch", "builtins"))
    return mro[0], *(value for c in own for value in vars(c).values() if callable(value))


def _plain(of: nn.Module) -> tuple:
    """The attributes of a module that are numbers, words or functions; not the switches that a call sets."""
    kinds = (bool, int, float, str, tuple, list, type(None))
    switches = ("b", "scale", "detach", "training")
    values = ((k, v) for k, v in vars(of).items() if k not in switches and (isinstance(v, kinds) or callable(v)))
    # a function itself: its name does not tell it from another; without the object that it is bound to
    return tuple((k, getattr(v, "__func__", v) if callable(v) else repr(v)) for k, v in values)


def _measure(module: Theirs) -> Measured | str:
    failure = ""
    for plain_geometry in (False, True):
        try:
            return _compare(module, plain_geometry)
        except Exception as error:  # anything that a stranger's forward can raise
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"its own forward fails on a small input: {failure}"


def _compare(module: Theirs, plain_geometry: bool) -> Measured | str:
    twin, parameters = _twin(module, plain_geometry)
    first, *others = _inputs(layers.weighted(twin))
    before = _state(twin)
    variants = list(_variants(module))
    for where, run in _runs(module, twin, parameters, first):
        theirs = run(None)
        variants = [v for v in variants if _equal(run(v), theirs)]
        if not variants:
            return f"its forward is none of the published formulas (seen at {where})"
    if _state(twin) != before:
        return "its forward changes the module"
    ranks = {first.dim()}
    for x in others:
        try:
            if all(_equal(run(variants[0]), run(None)) for _, run in _runs(module, twin, parameters, x)):
                ranks.add(x.dim())
        except Exception:  # the layer does not take inputs of this rank
            continue
    return Measured(variants[0], frozenset(ranks))


def _runs(module: Theirs, twin: Theirs, parameters: list[Tensor], x: Tensor) -> Iterator[tuple[str, Callable]]:
    """Every mode and exponent in words, and what computes the results there: by a variant, or by the twin's forward."""
    offset = 2 if getattr(module, "b_loss", False) else 0
    learned = isinstance(module.b, Tensor) or getattr(module, "clamping", False)

    def run(frozen: bool, variant: Variant | None) -> list[Tensor]:
        forward = type(twin).forward if variant is None else partial(layers.transform, backend="reference")
        return _results_of(twin, x, parameters, frozen, lambda: forward(twin, x, *([variant] if variant else [])))

    for b, training, frozen in itertools.product(EXPONENTS, (True, False), (False, True)):
        twin.b = torch.tensor(b - offset, dtype=torch.float64) if learned else b - offset
        for part in (twin, *twin._modules.values()):
            part.training = training
        mode = f"in {'training' if training else 'evaluation'}{' and explanation mode' if frozen else ''}"
        yield f"b={b} {mode}", partial(run, frozen)


def _variants(module: Theirs) -> Iterator[Variant]:
    """Every formula that the attributes of the layer leave open."""
    has = frozenset(name for name in OPTIONAL if hasattr(module, name))
    scaled = (True, False) if "scale" in has else (False,)
    for unit, norm, cos, divides in itertools.product((True, False), NORM_EPSILONS, COSINE_EPSILONS, scaled):
        yield Variant(unit, norm, cos, divides, has)


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(_same(a, b) for a, b in zip(ours, theirs, strict=True))


def _same(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    # row by row: each magnitude of the inputs is judged by its own size
    ours, theirs = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    return bool(((ours - theirs).abs().amax(1) <= TOLERANCE * theirs.abs().amax(1)).all())


def _results_of(twin, x: Tensor, parameters: list[Tensor], frozen: bool, forward) -> list[Tensor]:
    """Output and gradients of x and the parameters; the explanation mode is entered as the layer means it."""
    late = "dynamic_multiplication" in twin._modules
    if late:
        twin.dynamic_multiplication.state["fixed_weights"] = False
    else:
        twin.detach = frozen
    y = forward()
    if late:  # the mode that counts is the backward's
        twin.dynamic_multiplication.state["fixed_weights"] = frozen
    gradients = torch.autograd.grad(y, [x, *parameters], _numbers(y.shape, 0.7))
    return [y.detach(), gradients[0], *(g.reshape(1, -1) for g in gradients[1:])]


def _numbers(shape, phase: float) -> Tensor:
    """Fixed numbers in (-1, 1) without a pattern that a layer could miss; no random generator is involved."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64, device="cpu").mul(12.9898).add(phase)).view(shape)


def _inputs(layer: Theirs) -> Iterator[Tensor]:
    """Inputs of each rank, a batch of ``ROWS`` first; linear layers take any, convolutions one image too."""
    rows = torch.tensor(ROWS, dtype=torch.float64, device="cpu")
    if isinstance(layer, nn.Conv2d):
        reach = (
            d * (k - 1) + 1 + s for d, k, s in zip(layer.dilation, layer.weight.shape[2:], layer.stride, strict=True)
        )
        x = _numbers((len(ROWS), layer.weight.shape[1] * layer.groups, *reach), 0.3) * rows.view(-1, 1, 1, 1)
        ranks = [x, x[0]]
    else:
        x = _numbers((len(ROWS), layer.weight.shape[1]), 0.3) * rows[:, None]
        ranks = [x, x[0], x.unflatten(0, (2, -1)), x.unflatten(0, (2, 1, -1))]
    return (x.clone().requires_grad_() for x in ranks)


def _twin(module: Theirs, plain_geometry: bool) -> tuple[Theirs, list[Tensor]]:
    """A copy with the module's flags and sizes and numbers of ours; its weight (and bias) in float64."""
    layer = layers.weighted(module)
    weight = _numbers(layer.weight.shape, 0.1).requires_grad_()
    bias = None if layer.bias is None else _numbers(layer.bias.shape, 0.2).requires_grad_()
    twin = inner = _copy(module)
    for name, child in module._modules.items():
        twin._modules[name] = _copy(child)
    if layer is not module:
        inner = twin._modules["linear"]
    for name, value in (("weight", weight), ("bias", bias)):
        for store in (inner.__dict__, inner._buffers):
            store.pop(name, None)
        inner._parameters[name] = value
    for name, number in (("b", 2.0), ("scale", 0.37)):
        if name in twin._parameters or name in twin._buffers or name in vars(twin):
            twin._parameters.pop(name, None)
            twin._buffers.pop(name, None)
            twin.__dict__[name] = number
    if isinstance(layer, nn.Conv2d) and plain_geometry:
        _plain_geometry(twin)
        _plain_geometry(inner)
    return twin, [weight] if bias is None else [weight, bias]


def _copy(module: Theirs) -> Theirs:
    """The same class and attributes: containers copied, methods bound to the copy, calls without hooks."""
    kind: Any = published_mro(type(module))[1 if parametrize.is_parametrized(module) else 0]
    copy = object.__new__(kind)
    for name, value in vars(module).items():
        if isinstance(value, types.MethodType) and value.__self__ is module:
            value = types.MethodType(value.__func__, copy)
        elif isinstance(value, (dict, list, set)):
            value = type(value)() if name.endswith("_hooks") else value.copy()
        vars(copy)[name] = value
    vars(copy)["_compiled_call_impl"] = types.MethodType(kind.forward, copy)
    return copy


def _plain_geometry(module: Theirs) -> None:
    """Stride 1 without padding and dilation: some layers refuse what their own constructor took."""
    own = module.__dict__
    replaced = own.get("calc_patch_norms")
    if replaced is not None and layers.is_own_slow_norm(module, replaced, getattr(type(module), SLOW_NORM, None)):
        del own["calc_patch_norms"]
    pair = isinstance(module, nn.Conv2d)
    for name, value in (("stride", 1), ("padding", 0), ("dilation", 1)):
        if name in own:
            own[name] = (value, value) if pair or isinstance(own[name], tuple) else value
    if "padding_mode" in own:
        own["padding_mode"] = "zeros"


def _state(twin: Theirs) -> dict:
    """What a forward with a side effect would change."""
    own = ("b", "detach", "training", "_parameters", "_modules", "_buffers")
    return {
        k: (id(v), len(v) if isinstance(v, (dict, list, set)) else 0) for k, v in vars(twin).items() if k not in own
    }
