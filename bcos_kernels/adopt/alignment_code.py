"""The code of CoDA-Nets' layers: which published formula their classes compute together."""

from __future__ import annotations

from dataclasses import dataclass

from . import published

__all__ = ["PARTS", "WEIGHTS", "Code", "Variant", "read"]

WEIGHTS = "weight_mod"
"""The attribute in which a layer holds the module that makes its dynamic weights."""

PARTS = "weighting_f", "norm_func"
"""The modules that make the dynamic weights and their norms, in :data:`WEIGHTS`."""


@dataclass(frozen=True)
class Variant:
    """One of the published formulas."""

    norm: str
    """The code of the norm: ``"squash"``, or ``"lp"`` where the module's ``p`` and ``return_norm`` decide."""


@dataclass(frozen=True, eq=False)
class Code(published.Code):
    """What the code of these classes together computes: the layer's, that of its weights, its norm's and torch's."""

    weights_own: frozenset[str] = frozenset()
    """The names of the methods that make the dynamic weights and the patches."""


@published.reads_code(Code)
def read(reading: published.Reading, cls: type, weights: type, norm: type, *parts: type) -> Code:
    """Forms the fingerprints of the classes and looks them up in the table.

    ``parts`` are the sequence and the two convolutions that make the dynamic weights.
    """
    _, layer = reading.known(cls, "alignments")
    _, making = reading.known(weights, "dynamic_weights", WEIGHTS, ("forward", "unfold"))
    formula, _ = reading.known(norm, "weight_norms", f"{WEIGHTS}.norm_func")
    for part in parts:
        _, found = reading.known(part, "linears", f"{WEIGHTS}.weighting_f")
        if found.digest != "torch":
            raise published.Unknown(f"its .{WEIGHTS}.weighting_f has parts that are not PyTorch's own")
    return Code(
        Variant(formula["norm"]),
        parts=(weights, norm, *parts),
        own=frozenset(name for _, name, _ in layer.methods) - {"forward"} | {WEIGHTS},
        reads=layer.reads,
        weights_own=frozenset(name for _, name, _ in making.methods) | set(PARTS),
    )
