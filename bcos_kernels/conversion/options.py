"""The options of a conversion, checked once and handed to every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from ..core.checks import flag
from ..transform import checks

__all__ = ["CLIP", "IMAGENET", "Options"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the three channels, as torchvision's models were trained with them."""

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The same of CLIP's models."""

CLASSES = "classes"


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`bcos_kernels.convert`, which explains them."""

    b: float
    learn_b: str | None
    bias: bool
    uncentered: bool
    activations: bool
    average_pool: bool
    pool_logits: bool
    attn_unpool: bool
    logit_bias: float | str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    out_dtype: torch.dtype | None
    backend: str | None

    def __post_init__(self) -> None:
        if isinstance(self.b, Tensor):
            raise TypeError(f"b={self.b!r}: a float is needed; learn_b makes parameters of it")
        checks.exponent(self.b, torch.empty(0, device="cpu"))
        if self.learn_b not in (None, "clamp", "offset"):
            raise ValueError(f"learn_b={self.learn_b!r}: allowed are None, 'clamp' and 'offset'")
        for name in ("bias", "uncentered", "activations", "average_pool", "pool_logits", "attn_unpool"):
            flag(name, getattr(self, name))
        if self.logit_bias not in (None, CLASSES) and not _is_finite(self.logit_bias):
            raise ValueError(f"logit_bias={self.logit_bias!r}: {CLASSES!r}, a finite float or None is needed")
        for name in ("mean", "std"):
            _check_values(name, getattr(self, name))

    def layer(self, weight: Tensor) -> dict:
        """The keyword arguments of a B-cos layer, whose weight is the given one."""
        b: float | Tensor = self.b
        if self.learn_b is not None:
            # at the bound of `clamped` itself, 1 + 1e-6, the gradient is 0 since torch 2.14
            first = self.b - 2 if self.learn_b == "offset" else max(self.b, 1 + 2e-6)
            b = nn.Parameter(torch.tensor(first, dtype=weight.dtype, device=weight.device))
        return {"b": b, "normalize_weights": False, "out_dtype": self.out_dtype, "backend": self.backend}

    def statistics(self, clip: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the six channels, for CLIP's networks or for all others."""
        mean, std = (
            tuple(map(float, default if given is None else given))
            for given, default in zip((self.mean, self.std), CLIP if clip else IMAGENET, strict=True)
        )
        inverse = tuple(1 - m for m in mean) if len(mean) == 3 else ()
        return mean + inverse, std * (2 if len(std) == 3 else 1)

    def bias_of_logits(self, classes: int | None) -> float | None:
        """The constant that is added to the logits; None where there is none, as of embeddings (``classes=None``)."""
        if self.logit_bias != CLASSES:
            return None if self.logit_bias is None else float(self.logit_bias)
        return None if classes is None or classes < 3 else -math.log(classes - 1)


def _is_finite(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _check_values(name: str, values) -> None:
    if values is None:
        return
    if isinstance(values, str) or not isinstance(values, (Sequence, Tensor)):
        raise TypeError(f"{name}={values!r}: three or six floats are needed")
    found = [v.item() if isinstance(v, Tensor) else v for v in values]
    if len(found) not in (3, 6) or not all(map(_is_finite, found)):
        raise ValueError(f"{name}={values!r}: three or six finite floats are needed")
    if name == "std" and min(found) <= 0:
        raise ValueError(f"std={values!r}: all values must be above 0")
