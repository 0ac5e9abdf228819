"""The published layers: which code computes which formula.

``published.json`` names the code by its fingerprint and holds no code. ``python -m benchmarks.fingerprints`` adds what
it finds in checkouts; the formula beside each fingerprint is entered by a person who has read that code.
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
"""Somebody's module: what it holds is known by its code, not by a type."""

TABLE = Path(__file__).with_name("published.json")

SLOW_NORM = "_calc_patch_norms_slow"
"""The method that a layer with dilation assigns to its own ``calc_patch_norms``."""

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
    """Those of ``OPTIONAL`` that the layer reads."""


@dataclass(frozen=True, eq=False)
class Code:
    """What decides the value of one combination of classes: the layer's, its linear part's and its mode's."""

    variant: Variant | str
    """The formula, or why it is not known."""
    watched: tuple[tuple[object, str, object], ...] = ()
    """``(class, module or function; name; value)``: the variant holds while the attribute of that name is the value."""
    parts: tuple[type, ...] = ()
    """The classes of the linear part and of the mode, which are called as every module is."""
    own: frozenset[str] = frozenset()
    """Names of the layer's methods: one that is assigned on the instance takes the place of the class's."""
    linear_own: frozenset[str] = frozenset()
    """The same of the linear part."""
    reads: frozenset[str] = frozenset()
    """Plain attributes that the layer's code reads."""
    convolves: bool = True
    """Whether the linear part is a convolution."""
    late: bool = False
    """Whether the explanation mode is the backward's."""
    scales_weights: bool = False
    """Whether the linear part may take its weights as they are, or times a scale, as in B-cosification."""
    pads: bool = True
    """Whether the linear part follows its ``padding_mode``; the first version pads with zeros whatever it says."""
    slow_norm: object = None
    """The layer's method for the norm of dilated patches, if it is a published one."""
    fitting: dict[tuple, str | None] = field(default_factory=dict)
    """Sizes of a layer and of its linear part -> where they contradict each other, for those met so far."""

    def holds(self) -> bool:
        """Whether nothing was replaced since the code was read."""
        if torch.compiler.is_compiling():  # as below, in words that Dynamo knows
            same = all(getattr(owner, name, None) is value for owner, name, value in self.watched)
            return same and all(map(_is_called_as_usual, self.parts))
        owners, names, values = self.watched_apart
        try:
            return list(map(getattr, owners, names)) == values and all(map(_is_called_as_usual, self.parts))
        except AttributeError:  # one of them was deleted
            return False

    @functools.cached_property
    def watched_apart(self) -> tuple[list, list[str], list]:
        """The owners, the names and the values of what is watched."""
        owners, names, values = map(list, zip(*self.watched, strict=True)) if self.watched else ([], [], [])
        return owners, names, values

    @functools.cached_property
    def sizes(self) -> Callable[[nn.Module], object]:
        """Reads from a layer, in one step, what has to fit its linear part."""
        return attrgetter(*(self.reads & SIZES or ("b",)))


SIZES = {"in_channels", "out_channels", "out_features", "max_out", "kernel_size", "kssq", "patch_size"}
SIZES |= {"stride", "padding", "dilation", "groups"}
"""Attributes of a layer that say again what its linear part says."""

_CODES: dict[tuple[type, type, type], Code] = {}


def code(module: nn.Module, linear: nn.Module) -> Code:
    """The code of a layer whose linear part is ``linear``, read again when a method of it was replaced."""
    kinds = (type(module), type(linear), type(module._modules.get("dynamic_multiplication")))
    found = _CODES.get(kinds)
    if found is None or not found.holds():
        found = _CODES[kinds] = _read(*kinds)
    return found


def published_mro(kind: type) -> tuple[type, ...]:
    """The classes that a class inherits from, without those that ``accelerate`` or ``parametrize`` put there."""
    return tuple(c for c in kind.__mro__ if "_bcos_kernels_plan" not in vars(c) and c.__module__ != _PARAMETRIZED)


_PARAMETRIZED = "torch.nn.utils.parametrize"


@functools.cache
def _table() -> dict[str, dict]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def _read(kind: type, linear: type, mode: type) -> Code:
    """Hashes the classes and looks them up."""
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
        return Code("its code and its parts do not agree on where the weight is: in it, or in its .linear", methods)
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
    """Each method where it is defined, and as the layer's present class finds it, and the names that the code uses."""
    origin = next((c.__bases__[0] for c in kind.__mro__ if "_bcos_kernels_plan" in vars(c)), kind)
    watched = [*found.names]
    for owner, name, value in found.methods:
        watched.append((owner, name, value))
        finder = origin if name == "forward" else kind
        if getattr(finder, name, None) is value and finder is not owner:
            watched.append((finder, name, value))
    return tuple(watched)
