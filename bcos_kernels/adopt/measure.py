"""Measures which published formula a layer of unknown code computes, by comparing their results in float64.

A measurement is not a proof: on other inputs the layer may compute something else. So layers are measured only where
the user asks for it, with ``accelerate(model, unpublished="measure")``, and the report marks them as measured.
A formula must reproduce the outputs and the gradients: in training and in evaluation, with the explanation mode on and
off, for inputs of every rank that the layer takes, small and large, and for exponents up to 8. The layer, its hooks and
the state of the random number generator are not touched.
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

from ..core import plans
from ..core.checks import autocast_dtype
from . import layer as layers
from .layer_code import OPTIONAL, SLOW_NORM, Variant
from .published import Theirs, published_mro, unreadable

__all__ = ["find", "measure", "one_thread"]

TOLERANCE = 1e-8
"""The allowed relative difference, in float64; the smallest difference between two variants is near 5e-7."""

EXPONENTS = (1.5, 1.0, 2.0, 2.5, 4.0, 8.0)
"""The first shows every epsilon; the others test b = 1 and b = 2, and whether large exponents are capped."""

ROWS = (1.0, 1e-3, 1e-8, 1e3)
"""Magnitudes of the inputs: every epsilon of a norm shows in one of them, and a clamp of large values in the last."""

NORM_EPSILONS = ((1e-6, 0.0), (0.0, 1e-12))
COSINE_EPSILONS = (1e-6, 0.0)


class Measured(NamedTuple):
    """What a measurement found."""

    variant: Variant
    ranks: frozenset[int]
    """The numbers of dimensions of the inputs for which the layer computes the variant."""
    casts_alike: bool
    """Whether under autocast the layer's outputs have the dtypes of the variant's."""


_results: dict[tuple, Measured | str] = {}


def find(module: Theirs, x: Tensor | None = None, backend: str | None = None) -> Variant | str:
    """The variant that was measured for the present state of the module; or why its own forward must run for x."""
    linear = layers.weighted(module)
    weight: Any = None if linear is None else layers.weight_of(module, linear, x)
    if isinstance(weight, str):
        return weight
    found = measure(module)
    if isinstance(found, str):
        return found
    if x is not None and x.dim() not in found.ranks:
        return f"its formula was not confirmed for inputs of {x.dim()} dimensions"
    if x is not None and not found.casts_alike and autocast_dtype(x.device.type) is not None:
        return "under autocast its output has another dtype than its formula's"
    return layers.unusual_exponent(module, found.variant.attributes, weight) or found.variant


def measure(module: Theirs) -> Measured | str:
    """The variant that a candidate computes, or the reason why it has none; layers that are alike are measured once."""
    if (reason := _unmeasurable(module)) is not None:
        return reason
    with _weight_read_as_in_evaluation(layers.weighted(module)):
        key = _key(module)
        if key not in _results:
            # All of it runs on the CPU, even if the model is being built under another default device.
            with (
                torch.device("cpu"),
                torch.random.fork_rng(devices=[]),
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast("cpu", enabled=False),
                one_thread(),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                return plans.keep(_results, key, _measure(module))
        return _results[key]


@contextmanager
def _weight_read_as_in_evaluation(layer: Theirs) -> Iterator[None]:
    """A context in which the weight may be read: in training, every read of a parametrized one may change it."""
    training = [part for part in layer.modules() if part.training] if parametrize.is_parametrized(layer) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _unmeasurable(module: Theirs) -> str | None:
    """The reason why the structure of a candidate rules out a measurement; None if it does not."""
    if (reason := unreadable(module) or layers.unreadable(module)) is not None:
        return reason
    layer = layers.weighted(module)
    extra = set(module._modules) - {"linear", "dynamic_multiplication"}
    extra |= (module._parameters.keys() | module._buffers.keys()) - {"b", "scale"}
    if layer is module:
        extra -= {"weight", "bias"}
    return f"it also holds {', '.join(sorted(extra))}, which no published layer has" if extra else None


@contextmanager
def one_thread() -> Iterator[None]:
    """A context with one thread: small sums cost less than waking a pool of threads, above all on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _key(module: Theirs) -> tuple:
    """All that can change the formula: code, plain attributes, functions on the instance, and sizes, not values."""
    layer = layers.weighted(module)
    parts = (module, *module._modules.values())
    code = tuple(_functions(type(part)) for part in parts)
    learned = isinstance(module.b, Tensor)
    return code, tuple(map(_plain, parts)), learned, layer.bias is None, tuple(layer.weight.shape)


def _functions(cls: type) -> tuple:
    """A class and all functions that it has from outside of torch, compared by identity."""
    mro = published_mro(cls)
    own = (c for c in mro if c.__module__.partition(".")[0] not in ("torch", "builtins"))
    return mro[0], *(value for c in own for value in vars(c).values() if callable(value))


def _plain(of: nn.Module) -> tuple:
    """The attributes of a module that are numbers, strings or functions, without those that change between calls."""
    plain = (bool, int, float, str, tuple, list, type(None))
    switches = ("b", "scale", "detach", "training")
    values = ((k, v) for k, v in vars(of).items() if k not in switches and (isinstance(v, plain) or callable(v)))
    # A function stands for itself, because another one may have its name; a method is taken without its object.
    return tuple((k, getattr(v, "__func__", v) if callable(v) else repr(v)) for k, v in values)


def _measure(module: Theirs) -> Measured | str:
    failure = ""
    for plain_geometry in (False, True):
        try:
            return _compare(module, plain_geometry)
        except Exception as error:  # a third-party forward can raise anything
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
            return f"its forward computes none of the published formulas (seen at {where})"
    if _state(twin) != before:
        return "its forward changes the module"
    ranks = {first.dim()}
    for x in others:
        try:
            if all(_equal(run(variants[0]), run(None)) for _, run in _runs(module, twin, parameters, x)):
                ranks.add(x.dim())
        except Exception:  # the layer does not take inputs of this rank
            continue
    for t in (first, *parameters):
        t.data = t.data.float()
    with torch.autocast("cpu", torch.bfloat16):
        casts_alike = _have_one_dtype(variants[0], _runs(module, twin, parameters, first))
    return Measured(variants[0], frozenset(ranks), casts_alike)


def _have_one_dtype(variant: Variant, runs: Iterator[tuple[str, Callable]]) -> bool:
    """Whether the output of each run has the same dtype by the variant as by the layer's own forward."""
    try:
        return all(run(variant)[0].dtype == run(None)[0].dtype for _, run in runs)
    except Exception:  # its own, which it shall raise itself
        return False


def _runs(module: Theirs, twin: Theirs, parameters: list[Tensor], x: Tensor) -> Iterator[tuple[str, Callable]]:
    """For each exponent and mode, its name and ``run(variant)``; ``run(None)`` runs the twin's own forward."""
    offset = 2 if getattr(module, "b_loss", False) else 0
    learned = isinstance(module.b, Tensor) or getattr(module, "clamping", False)

    def run(frozen: bool, variant: Variant | None) -> list[Tensor]:
        forward = type(twin).forward if variant is None else partial(layers.run, backend="reference")
        return _results_of(twin, x, parameters, frozen, lambda: forward(twin, x, *([variant] if variant else [])))

    for b, training, frozen in itertools.product(EXPONENTS, (True, False), (False, True)):
        twin.b = torch.tensor(b - offset, dtype=torch.float64) if learned else b - offset
        for part in (twin, *twin._modules.values()):
            part.training = training
        mode = f"in {'training' if training else 'evaluation'}{' and explanation mode' if frozen else ''}"
        yield f"b={b} {mode}", partial(run, frozen)


def _variants(module: Theirs) -> Iterator[Variant]:
    """Every formula that the layer can compute according to its attributes."""
    has = frozenset(name for name in OPTIONAL if hasattr(module, name))
    scales = ((True, True), (True, False), (False, True)) if "scale" in has else ((False, True),)
    for unit, norm, cos, (scaled, at_one), exact_two in itertools.product(
        (True, False), NORM_EPSILONS, COSINE_EPSILONS, scales, (True, False)
    ):
        yield Variant(unit, norm, cos, scaled, has, exact_two, at_one)


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(_same(a, b) for a, b in zip(ours, theirs, strict=True))


def _same(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    # Compared row by row, so that the differences of each row are relative to the magnitude of its input.
    ours, theirs = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    return bool(((ours - theirs).abs().amax(1) <= TOLERANCE * theirs.abs().amax(1)).all())


def _results_of(twin, x: Tensor, parameters: list[Tensor], frozen: bool, forward) -> list[Tensor]:
    """The output and the gradients of x and the parameters, in the early or the late mode, whichever the layer has."""
    late = "dynamic_multiplication" in twin._modules
    if late:
        twin.dynamic_multiplication.state["fixed_weights"] = False
    else:
        twin.detach = frozen
    y = forward()
    if late:  # the backward reads the mode
        twin.dynamic_multiplication.state["fixed_weights"] = frozen
    gradients = torch.autograd.grad(y, [x, *parameters], _numbers(y.shape, 0.7).to(y.dtype))
    return [y.detach(), gradients[0], *(g.reshape(1, -1) for g in gradients[1:])]


def _numbers(shape, phase: float) -> Tensor:
    """Fixed numbers in (-1, 1) that look random; no random number generator is used."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64, device="cpu").mul(12.9898).add(phase)).view(shape)


def _inputs(layer: Theirs) -> Iterator[Tensor]:
    """An input of each rank, first a batch with one row for each of ``ROWS``; the others have other ranks."""
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
    """A copy of the module with weight, bias, b and scale replaced by fixed numbers; and its parameters, in float64."""
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
    """A copy with the same attributes: its containers are copies, its methods are bound to it, and it has no hooks."""
    cls: Any = published_mro(type(module))[0]
    copy = object.__new__(cls)
    for name, value in vars(module).items():
        if isinstance(value, types.MethodType) and value.__self__ is module:
            value = types.MethodType(value.__func__, copy)
        elif isinstance(value, (dict, list, set)):
            value = type(value)() if name.endswith("_hooks") else value.copy()
        vars(copy)[name] = value
    vars(copy)["_compiled_call_impl"] = types.MethodType(cls.forward, copy)
    return copy


def _plain_geometry(module: Theirs) -> None:
    """Sets stride 1, no padding and no dilation, because the forward of some layers refuses other values."""
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
    """The identities and lengths of attributes, which show whether a forward has changed the module."""
    own = ("b", "detach", "training", "_parameters", "_modules", "_buffers")
    return {
        k: (id(v), len(v) if isinstance(v, (dict, list, set)) else 0) for k, v in vars(twin).items() if k not in own
    }
