"""The published layers: which code computes which formula.

``published.json`` lists fingerprints and holds no code. ``python -m benchmarks.fingerprints`` adds the fingerprints of
checkouts; a person who has read the code enters the formula beside each of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import fingerprint

__all__ = ["SLOW_NORM", "TABLE", "Code", "Theirs", "Variant", "code"]

Theirs = Any
"""A third-party module: its code says what it holds; there is no type that does."""

TABLE = Path(__file__).with_name("published.json")

SLOW_NORM = "_calc_patch_norms_slow"
"""The name of the method that a layer with dilation assigns to its own ``calc_patch_norms``."""

OPTIONAL = ("b_loss", "clamping", "dynamic_multiplication", "max_out", "normalized_weights", "scale")
"""Attributes that only some of the published layers read."""


@dataclass(frozen=True)
class Variant:
    """One of the published formulas; the options are those of :mod:`bcos_kernels.functional`."""

    normalize_weights: bool
    norm_eps: tuple[float, float]
    cos_eps: float
    scaled: bool
    """Whether the output is divided by ``module.scale``."""
    attributes: frozenset[str]
    """The attributes in ``OPTIONAL`` that the layer reads."""


@dataclass(frozen=True, eq=False)
class Code:
    """What the code of three classes together computes: the layer's, its linear part's and its explanation mode's."""

    variant: Variant | str
    """The formula, or the reason why it is not known."""
    watched: tuple[tuple[object, str, object], ...] = ()
    """``(owner, name, value)``, the owner a class, a module or a function: the variant is valid while every owner's
    attribute of that name is that value."""
    parts: tuple[type, ...] = ()
    """The classes of the linear part and of the explanation mode, which must be called in the usual way."""
    own: frozenset[str] = frozenset()
    """The names of the layer's methods: one that is assigned on the instance would run in place of the class's."""
    linear_own: frozenset[str] = frozenset()
    """The same names for the linear part."""
    reads: frozenset[str] = frozenset()
    """The attributes of the instance that the layer's code reads."""
    convolves: bool = True
    """Whether the linear part is a convolution."""
    late: bool = False
    """Whether the layer has the late explanation mode."""
    scales_weights: bool = False
    """Whether the linear part has the option to multiply its weights by a scale, as in B-cosification."""
    pads: bool = True
    """Whether the linear part follows its ``padding_mode``; that of the first version always pads with zeros."""
    slow_norm: object = None
    """The layer's method for the norm of dilated patches, if that method is published."""
    fitting: dict[tuple, str | None] = field(default_factory=dict)
    """Sizes of a layer and of its linear part that were met so far -> where they contradict each other, or None."""

    def holds(self) -> bool:
        """Whether nothing was replaced since the code was read."""
        if torch.compiler.is_compiling():  # the same test in a form that Dynamo can trace
            same = all(getattr(owner, name, None) is value for owner, name, value in self.watched)
            return same and all(map(_is_called_as_usual, self.parts))
        owners, names, values = self.watched_apart
        try:
            return list(map(getattr, owners, names)) == values and all(map(_is_called_as_usual, self.parts))
        except AttributeError:  # one of them was deleted
            return False

    @functools.cached_property
    def watched_apart(self) -> tuple[list, list[str], list]:
        """The owners, the names and the values in ``watched``."""
        owners, names, values = map(list, zip(*self.watched, strict=True)) if self.watched else ([], [], [])
        return owners, names, values

    @functools.cached_property
    def sizes(self) -> Callable[[nn.Module], object]:
        """Reads from a layer, in one step, the attributes that must agree with its linear part."""
        return attrgetter(*(self.reads & SIZES or ("b",)))


SIZES = {"in_channels", "out_channels", "out_features", "max_out", "kernel_size", "kssq", "patch_size"}
SIZES |= {"stride", "padding", "dilation", "groups"}
"""Attributes of a layer that repeat what its linear part holds."""

_CODES: dict[tuple[type, type, type], Code] = {}


def code(module: nn.Module, linear: nn.Module) -> Code:
    """The code of a layer whose linear part is ``linear``; it is read again after a method was replaced."""
    kinds = (type(module), type(linear), type(module._modules.get("dynamic_multiplication")))
    found = _CODES.get(kinds)
    if found is None or not found.holds():
        found = _CODES[kinds] = _read(*kinds)
    return found


def published_mro(kind: type) -> tuple[type, ...]:
    """The method resolution order of a class without the classes that ``accelerate`` or ``parametrize`` inserted."""
    return tuple(c for c in kind.__mro__ if "_bcos_kernels_plan" not in vars(c) and c.__module__ != _PARAMETRIZED)


_PARAMETRIZED = "torch.nn.utils.parametrize"


@functools.cache
def _table() -> dict[str, dict]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def _read(kind: type, linear: type, mode: type) -> Code:
    """Forms the fingerprints of the three classes and looks them up in the table."""
    mro = published_mro(kind)
    try:
        layer = fingerprint.of(mro)
    except fingerprint.Unreadable as error:
        return Code(str(error), _watched(kind, error))
    methods = _watched(kind, layer)
    row = _table()["layers"].get(layer.digest, {})
    if not (formula := row.get("formula")):
        return Code(f"the code of {mro[0].__name__}.forward is not among the published layers", methods)
    if ("linear" in layer.reads) == (linear is kind):
        return Code("its code and its parts do not agree on where the weight is: in itself or in its .linear", methods)
    unit, inner, pads = formula.get("unit"), None, True
    parts = [(linear, "linears", "linear")] if linear is not kind else []
    if "dynamic_multiplication" in layer.reads:
        parts.append((mode, "modes", "dynamic_multiplication"))
    part: Any
    for part, rows, name in parts:
        try:
            found = fingerprint.of(published_mro(part))
        except fingerprint.Unreadable as error:
            return Code(f"its .{name}: {error}", methods + _watched(part, error))
        methods += _watched(part, found)
        known = found.digest == "torch" and part.forward in (nn.Conv2d.forward, nn.Linear.forward)
        row = {"formula": {"unit": False}} if known else _table()[rows].get(found.digest, {})
        if not row.get("formula"):
            return Code(f"its .{name}: the code of {part.__name__}.forward is not among the published ones", methods)
        if not _is_called_as_usual(part) or _finds_otherwise(part):
            patched = tuple((part, call, getattr(part, call)) for call in ("__call__", "_call_impl"))
            why = f"its .{name}: {part.__name__} changes how a module is called or holds attributes"
            return Code(why, methods + patched)
        if rows == "linears":
            unit, inner = row["formula"]["unit"], found
            pads = known or any(method == "_conv_forward" for _, method, _ in found.methods)
    if _finds_otherwise(kind):
        return Code(f"{mro[0].__name__} changes how its attributes are found", methods)
    slow = None
    if hasattr(kind, SLOW_NORM):
        norm: fingerprint.Fingerprint | fingerprint.Unreadable
        try:
            norm = fingerprint.of(mro, (SLOW_NORM,))
        except fingerprint.Unreadable as error:
            norm = error
        methods += _watched(kind, norm)
        if getattr(norm, "digest", None) in _table()["slow_norms"]:
            slow = getattr(kind, SLOW_NORM)
    variant = Variant(
        normalize_weights=unit,
        norm_eps=tuple(formula["norm_eps"]),
        cos_eps=formula["cos_eps"],
        scaled="scale" in layer.reads,
        attributes=layer.reads.intersection(OPTIONAL),
    )
    return Code(
        variant,
        tuple(dict.fromkeys(methods)),
        tuple(part for part, _, _ in parts),
        own=frozenset(name for _, name, _ in layer.methods) - {"forward"} | {name for _, _, name in parts},
        linear_own=frozenset(name for _, name, _ in inner.methods) | {"_call_impl"} if inner else frozenset(),
        reads=layer.reads,
        convolves=issubclass(linear, nn.Conv2d),
        late="dynamic_multiplication" in layer.reads,
        scales_weights=inner is not None and "use_weight_norm" in inner.reads,
        pads=pads,
        slow_norm=slow,
    )


setattr(_read, "_torchdynamo_disable", True)  # noqa: B010 - as torch.compiler.disable, which imports Dynamo: the graph breaks to read code


def _is_called_as_usual(part: type[nn.Module]) -> bool:
    return part.__call__ is nn.Module.__call__ and part._call_impl is nn.Module._call_impl


def _finds_otherwise(kind: Any) -> bool:
    return kind.__getattr__ is not nn.Module.__getattr__ or kind.__getattribute__ is not object.__getattribute__


def _watched(kind: type, found: fingerprint.Fingerprint | fingerprint.Unreadable) -> tuple:
    """What to watch: each method at its definer and as the layer's class finds it, and the names that the code uses."""
    origin = next((c.__bases__[0] for c in kind.__mro__ if "_bcos_kernels_plan" in vars(c)), kind)
    watched = [*found.names]
    for owner, name, value in found.methods:
        watched.append((owner, name, value))
        finder = origin if name == "forward" else kind
        if getattr(finder, name, None) is value and finder is not owner:
            watched.append((finder, name, value))
    return tuple(watched)
