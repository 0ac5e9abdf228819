"""Measures which published formula a layer computes: its own forward, in float64, on a twin of a few numbers.

A layer is accelerated only if a formula reproduces its outputs and its gradients, in both modes: an unknown
variant is left alone rather than computed wrongly. The layer, its hooks and the random state are not touched.
"""

from __future__ import annotations

import itertools
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from . import protocol
from .protocol import Variant

__all__ = ["measure"]

TOLERANCE = 1e-8
"""Relative, in float64; the smallest difference between two variants is near 5e-7."""

EXPONENTS = (1.5, 1.0, 2.0, 2.5)
"""The first tells every epsilon; the others confirm the shortcuts."""

ROWS = (1.0, 1e-3, 1e-8)
"""Magnitudes of the inputs: each epsilon of a norm shows in one of them."""

NORM_EPSILONS = ((1e-6, 0.0), (0.0, 1e-12))
COSINE_EPSILONS = (1e-6, 0.0)

_results: dict[tuple, Variant | str] = {}


def measure(module: nn.Module) -> Variant | str:
    """The variant that ``module`` computes, or why none; ``protocol.objection(module)`` must be None."""
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Waking a pool of threads costs more than these sums do, and far more where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _key(module: nn.Module) -> tuple:
    """What can change the formula: classes, plain attributes and functions on the instance, not sizes or values."""
    layer = protocol.weighted(module)
    sized = {
        "in_channels",
        "out_channels",
        "in_features",
        "out_features",
        "inc",
        "outc",
        "b",
        "scale",
        "detach",
    }

    def plain(of: nn.Module) -> tuple:
        kinds = (bool, int, float, str, tuple, type(None))
        values = ((k, v) for k, v in vars(of).items() if k not in sized and (isinstance(v, kinds) or callable(v)))
        # a function itself: its name does not tell it from another; without the object that it is bound to
        return tuple((k, getattr(v, "__func__", v) if callable(v) else repr(v)) for k, v in values)

    learned = isinstance(module.b, Tensor)
    grouped = (layer.groups > 1, layer.groups == layer.in_channels) if isinstance(layer, nn.Conv2d) else ()
    parts = tuple(type(child) for child in module._modules.values())
    kind = type(module)
    return kind, kind.forward, parts, plain(module), plain(layer), learned, layer.bias is None, grouped


def _measure(module: nn.Module) -> Variant | str:
    failure = ""
    for plain_geometry in (False, True):
        try:
            return _compare(module, plain_geometry)
        except Exception as error:  # anything that a stranger's forward can raise
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"its own forward fails on a small input: {failure}"


def _compare(module: nn.Module, plain_geometry: bool) -> Variant | str:
    twin, x, parameters = _twin(module, plain_geometry)
    before = _state(twin)
    variants = list(_variants(module))
    offset = 2 if getattr(module, "b_loss", False) else 0
    learned = isinstance(module.b, Tensor) or getattr(module, "clamping", False)
    for b in EXPONENTS:
        twin.b = torch.tensor(b - offset, dtype=torch.float64) if learned else b - offset
        for frozen in (False, True):
            theirs = _results_of(twin, x, parameters, frozen, lambda: type(twin).forward(twin, x))
            variants = [v for v in variants if _agrees(twin, x, parameters, frozen, v, theirs)]
            if not variants:
                mode = " in explanation mode" if frozen else ""
                return f"its forward is none of the published formulas (seen at b={b}{mode})"
    if _state(twin) != before:
        return "its forward changes the module"
    return variants[0]


def _variants(module: nn.Module) -> Iterator[Variant]:
    """Every formula that the attributes of the layer leave open."""
    has = frozenset(name for name in protocol.OPTIONAL if hasattr(module, name))
    linear_class = protocol.defining_class(type(protocol.weighted(module)), "forward")
    scaled = (True, False) if "scale" in has else (False,)
    for unit, norm, cos, divides in itertools.product((True, False), NORM_EPSILONS, COSINE_EPSILONS, scaled):
        yield Variant(unit, norm, cos, divides, has, linear_class)


def _agrees(twin, x: Tensor, parameters: list[Tensor], frozen: bool, variant: Variant, theirs: list[Tensor]) -> bool:
    def forward() -> Tensor:
        return protocol.transform(twin, x, variant, backend="reference")

    ours = _results_of(twin, x, parameters, frozen, forward)
    return all(_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    # row by row: each magnitude of the inputs is judged by its own size
    ours, theirs = ours.flatten(1), theirs.flatten(1)
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


def _twin(module: nn.Module, plain_geometry: bool) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """A copy with the module's flags and few channels; its input, and its weight (and bias) in float64."""
    layer = protocol.weighted(module)
    is_conv = isinstance(layer, nn.Conv2d)
    max_out = getattr(module, "max_out", 1)
    groups = min(layer.groups, 2) if is_conv else 1
    inputs = groups * min(layer.in_channels // layer.groups if is_conv else layer.in_features, 3)
    outputs = groups * 2
    sizes = {"in_channels": inputs, "in_features": inputs, "inc": inputs, "groups": groups}
    sizes |= {"out_channels": outputs, "out_features": outputs, "outc": outputs * max_out}
    filters = outputs * max_out
    kernel = tuple(layer.kernel_size) if is_conv else ()
    weight = _numbers((filters, inputs // groups, *kernel), 0.1).requires_grad_()
    bias = None if layer.bias is None else _numbers((filters,), 0.2).requires_grad_()
    parameters = [weight] if bias is None else [weight, bias]

    inner_sizes = {**sizes, "out_channels": filters, "out_features": filters}
    if layer is module:
        twin = inner = _copy(module, inner_sizes)
    else:
        twin, inner = _copy(module, sizes), _copy(layer, inner_sizes)
        twin._modules["linear"] = inner
    for name, child in module._modules.items():
        if name != "linear":
            twin._modules[name] = _copy(child, {})
    for name, value in (("weight", weight), ("bias", bias)):
        for store in (vars(inner), inner._buffers):
            store.pop(name, None)
        inner._parameters[name] = value
    for name, value in (("b", 2.0), ("scale", 0.37)):
        if name in twin._parameters or name in twin._buffers or name in vars(twin):
            twin._parameters.pop(name, None)
            twin._buffers.pop(name, None)
            vars(twin)[name] = value
    if is_conv and plain_geometry:
        _plain_geometry(twin)
        _plain_geometry(inner)
    rows = torch.tensor(ROWS, dtype=torch.float64, device="cpu")
    if not is_conv:
        x = _numbers((len(ROWS), inputs), 0.3) * rows[:, None]
    else:
        spatial = (d * (k - 1) + 1 + s for d, k, s in zip(inner.dilation, kernel, inner.stride, strict=True))
        x = _numbers((len(ROWS), inputs, *spatial), 0.3) * rows[:, None, None, None]
    return twin, x.requires_grad_(), parameters


def _copy(module: nn.Module, sizes: dict[str, int]) -> nn.Module:
    """The same class and attributes: containers copied, methods bound to the copy, calls without hooks."""
    kind = protocol.unparametrized(type(module), module)
    copy = object.__new__(kind)
    for name, value in vars(module).items():
        if isinstance(value, types.MethodType) and value.__self__ is module:
            value = types.MethodType(value.__func__, copy)
        elif isinstance(value, (dict, list, set)):
            value = type(value)() if name.endswith("_hooks") else value.copy()
        vars(copy)[name] = sizes.get(name, value)
    vars(copy)["_compiled_call_impl"] = types.MethodType(kind.forward, copy)
    return copy


def _plain_geometry(module: nn.Module) -> None:
    """Stride 1 without padding and dilation: some layers refuse what their own constructor took."""
    replaced = vars(module).get("calc_patch_norms")
    if replaced is not None and protocol.is_own_slow_norm(module, replaced):
        del vars(module)["calc_patch_norms"]
    pair = isinstance(module, nn.Conv2d)
    for name, value in (("stride", 1), ("padding", 0), ("dilation", 1)):
        if name in vars(module):
            vars(module)[name] = (value, value) if pair or isinstance(vars(module)[name], tuple) else value
    if "padding_mode" in vars(module):
        vars(module)["padding_mode"] = "zeros"


def _state(twin: nn.Module) -> dict:
    """What a forward with a side effect would change."""
    own = ("b", "detach", "_parameters", "_modules", "_buffers")
    return {
        k: (id(v), len(v) if isinstance(v, (dict, list, set)) else 0) for k, v in vars(twin).items() if k not in own
    }
