"""The code of a B-cos layer: which published formula its class, its linear part and its explanation mode compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import nn

from . import fingerprint, published

__all__ = ["GEOMETRY", "OPTIONAL", "SIZES", "SLOW_NORM", "TENSORS", "Code", "Variant", "read"]

SLOW_NORM = "_calc_patch_norms_slow"
"""The name of the method that a layer with dilation assigns to its own ``calc_patch_norms``."""

OPTIONAL = ("b_loss", "clamping", "dynamic_multiplication", "max_out", "normalized_weights", "scale")
"""Attributes that only some of the published layers read."""

SIZES = {"in_channels", "out_channels", "out_features", "max_out", "kernel_size", "kssq", "patch_size"}
SIZES |= {"stride", "padding", "dilation", "groups"}
"""Attributes of a layer that repeat what its linear part holds."""


GEOMETRY = "stride", "padding", "dilation", "groups", "padding_mode", "_reversed_padding_repeated_twice"
"""The attributes that an ``nn.Conv2d`` computes with.

The last one holds the amounts of padding for the modes other than zeros, as they were when the layer was made.
"""

TENSORS = frozenset(("weight", "bias"))
"""The parameters of a linear part."""


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
    exact_two: bool = True
    """Whether ``cos_eps`` is left out at b = 2."""
    scaled_at_one: bool = True
    """Whether a scaled output is divided at b = 1, too."""
    exponents: tuple[int, ...] = ()
    """The values of b at which the code computes this formula; empty for all values."""


@dataclass(frozen=True, eq=False)
class Code(published.Code):
    """What the code of three classes together computes: the layer's, its linear part's and its explanation mode's."""

    linear_own: frozenset[str] = frozenset()
    """The names of the linear part's methods."""
    convolves: bool = True
    """Whether the linear part is a convolution."""
    scales_weights: bool = False
    """Whether the linear part has the option to multiply its weights by a scale, as in B-cosification."""
    pads: bool = True
    """Whether the linear part follows its ``padding_mode``; that of the first version always pads with zeros."""
    slow_norm: object = None
    """The layer's method for the norm of dilated patches, if that method is published."""
    classes: tuple[type, ...] = ()
    """Those of the layer and of its linear part."""
    fitting: dict[tuple, str | None] = field(default_factory=dict)
    """Sizes of a layer and of its linear part that were met so far -> where they contradict each other, or None."""

    plans: dict[bytes, Any] = field(default_factory=dict)
    """All that decides about a call -> its plan, or None where the call must be read anew."""

    @functools.cached_property
    def watched_beside(self) -> tuple[list, list, list]:
        """``watched_apart`` without what ``classes`` and their bases hold, for those who know their versions."""
        kept = [
            row for row in zip(*self.watched_apart, strict=True)
            if not (type(row[0]) is type and any(issubclass(cls, row[0]) for cls in self.classes))
        ]  # fmt: skip
        return [row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept]

    @functools.cached_property
    def held(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names under which a layer and its linear part hold what decides about a call, beside the tensors."""
        inner = {*self.linear_own, *(GEOMETRY if self.convolves else ())}
        inner |= {"use_weight_norm", "scale"} if self.scales_weights else set()
        return tuple(sorted((self.reads | self.own | {"b", "detach"}) - TENSORS)), tuple(sorted(inner | TENSORS))

    def is_held(self, module: Any, layer: Any) -> bool:
        """Whether the two hold themselves all that is read of them, so that nothing of it is their classes'."""
        own, inner = map(set, self.held)
        return (
            vars(module).keys() >= own - self.own
            and vars(layer).keys() >= inner - self.linear_own - TENSORS
            and not vars(layer).keys() & TENSORS
            and layer._parameters.keys() >= TENSORS
        )

    @functools.cached_property
    def sizes(self) -> Callable[[nn.Module], object]:
        """Reads from a layer, in one step, the attributes that must agree with its linear part."""
        return attrgetter(*(self.reads & SIZES or ("b",)))


@published.reads_code(Code)
def read(reading: published.Reading, cls: type, linear: type, mode: type) -> Code:
    """Forms the fingerprints of the three classes and looks them up in the table."""
    formula, layer = reading.known(cls, "layers")
    if ("linear" in layer.reads) == (linear is cls):
        where = "in itself or in its .linear"
        raise published.Unknown(f"its code and its parts do not agree on where the weight is: {where}")
    unit, inner, pads = bool(formula.get("unit")), None, True
    parts: dict[str, type] = {}
    if not issubclass(linear, (nn.Conv2d, nn.Linear)):
        raise published.Unknown(f"its .linear is {linear.__name__}, neither nn.Conv2d nor nn.Linear")
    if linear is not cls:
        row, inner = reading.known(linear, "linears", "linear")
        unit, parts["linear"] = row["unit"], linear
        pads = inner.digest == "torch" or any(method == "_conv_forward" for _, method, _ in inner.methods)
    late = "dynamic_multiplication" in layer.reads
    if late:
        reading.known(mode, "modes", "dynamic_multiplication")
        parts["dynamic_multiplication"] = mode
    slow = None
    if hasattr(cls, SLOW_NORM):
        norm: fingerprint.Fingerprint | fingerprint.Unreadable
        try:
            norm = fingerprint.of(published.published_mro(cls), (SLOW_NORM,))
        except fingerprint.Unreadable as error:
            norm = error
        reading.watched += published.watched(cls, norm)
        if getattr(norm, "digest", None) in published.rows("slow_norms"):
            slow = getattr(cls, SLOW_NORM)
    variant = Variant(
        normalize_weights=unit,
        norm_eps=tuple(formula["norm_eps"]),
        cos_eps=formula["cos_eps"],
        scaled="scale" in layer.reads,
        attributes=layer.reads.intersection(OPTIONAL),
        exact_two=formula.get("exact_two", True),
        scaled_at_one=formula.get("scaled_at_one", True),
        exponents=tuple(formula.get("exponents", ())),
    )
    return Code(
        variant,
        classes=(cls, linear),
        parts=tuple(parts.values()),
        own=frozenset(name for _, name, _ in layer.methods) - {"forward"} | parts.keys(),
        linear_own=frozenset(name for _, name, _ in inner.methods) | {"_call_impl"} if inner else frozenset(),
        reads=layer.reads,
        convolves=issubclass(linear, nn.Conv2d),
        late=late,
        scales_weights=inner is not None and "use_weight_norm" in inner.reads,
        pads=pads,
        slow_norm=slow,
    )
