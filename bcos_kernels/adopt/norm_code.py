"""The code of a norm: which published formula its class and its explanation mode compute."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import nn

from . import published

__all__ = ["TENSORS", "Code", "Variant", "read"]

TENSORS = "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
"""The parameters and buffers of a norm."""


@dataclass(frozen=True)
class Variant:
    """One of the published formulas; ``over`` and ``centered`` are those of :func:`bcos_kernels.functional.norm`."""

    over: str
    centered: bool
    ranks: tuple[int, ...]
    """The numbers of dimensions for which the code is made; any for ``over="token"``."""
    vendor: bool
    """Whether the code calls PyTorch's fused norm outside of the explanation mode."""
    runs: bool
    """Whether it has a running variance."""
    counts: bool
    """Whether it counts batches as ``nn.BatchNorm2d`` does, and averages where its momentum is None."""

    @property
    def op_over(self) -> str:
        """What the op calls it: a token is a position of its own."""
        return "position" if self.over == "token" else self.over


@dataclass(frozen=True, eq=False)
class Code(published.Code):
    """What the code of two classes together computes: the norm's and its explanation mode's."""

    tensors: tuple[str, ...] = ()
    """The parameters and buffers that the formula is computed with."""
    settings: Callable[[Any], object] = lambda module: ()
    """Reads from the norm, in one step, the other attributes that its formula depends on."""
    fitting: dict[tuple, Any] = field(default_factory=dict)
    """What decides how a call is served -> how it is, or the reason why the norm's own forward must run."""
    plans: dict[tuple, Any] = field(default_factory=dict)
    """All that decides about a call -> its plan, or None where the call must be read anew."""

    @functools.cached_property
    def held(self) -> tuple[str, ...]:
        """The names under which a norm holds what decides about a call; those of tensors stand for their absence."""
        return tuple(sorted({*self.reads, *self.own, *TENSORS, "detach", "eps", "training"}))

    def is_held(self, module: Any) -> bool:
        """Whether a norm holds itself all that is read of it, so that nothing of it is its class's."""
        own, tensors, read = vars(module), set(TENSORS), set(self.tensors)
        parameters = read & {"weight", "bias"}
        return (
            own.keys() >= set(self.held) - self.own - tensors
            and not own.keys() & tensors
            and module._parameters.keys() & tensors == parameters
            and module._buffers.keys() >= read - parameters
        )


@published.reads_code(Code)
def read(reading: published.Reading, cls: type, mode: type) -> Code:
    """Forms the fingerprints of the two classes and looks them up in the table."""
    if issubclass(cls, nn.SyncBatchNorm):
        return Code("it is torch's SyncBatchNorm, a centered norm without an explanation mode")
    formula, norm = reading.known(cls, "norms")
    late = "dynamic_multiplication" in norm.reads
    if late:
        reading.mode(mode, "dynamic_multiplication")
    if "fails" in formula:
        return Code(f"its published code fails at every call: {formula['fails']}")
    over, runs = formula["over"], "running_var" in norm.reads
    variant = Variant(
        over, formula["centered"], tuple(formula.get("ranks", (4,))), formula.get("vendor", False), runs,
        "num_batches_tracked" in norm.reads,
    )  # fmt: skip
    sizes = {"group": ("num_groups",), "token": ("normalized_shape",)}.get(over, ())
    buffers, held = ("running_var",) if runs else (), {"dynamic_multiplication"} if late else set()
    return Code(
        variant,
        parts=(mode,) if late else (),
        own=frozenset(name for _, name, _ in norm.methods) - {"forward"} | held,
        reads=norm.reads,
        late=late,
        tensors=("weight", "bias", *buffers),
        settings=attrgetter("eps", *sizes, *(("track_running_stats",) if runs else ())),
    )
