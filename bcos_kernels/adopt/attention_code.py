"""The code of an attention: which published formula its class, its softmax and its explanation mode compute."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from . import published

__all__ = ["MODE", "PARTS", "Code", "Variant", "read"]

MODE = "dyn_mul"
"""The attribute in which an attention holds its late explanation mode."""

PARTS = "norm", "to_qkv", "attend", "to_out"
"""The modules that every published attention calls, in their order."""


@dataclass(frozen=True)
class Variant:
    """One of the published formulas: softmax(scale · q kᵀ) v of each head, between two layers."""

    late: bool
    """Whether the backward decides about the explanation mode. Under autocast such code sums the weighted
    values in the dtype of the softmax, that of the early mode in autocast's."""


@dataclass(frozen=True, eq=False)
class Code(published.Code):
    """What the code of these classes together computes: the attention's, its softmax's and its explanation mode's."""

    inner: tuple[str, ...] = ()
    """The parts whose calls are not made any more: a hook on them has to see these calls."""
    splits: bool = False
    """Whether its ``to_qkv`` is PyTorch's plain linear layer, which can form the values alone."""


@published.reads_code(Code)
def read(reading: published.Reading, cls: type, softmax: type, mode: type, linear: type) -> Code:
    """Forms the fingerprints of the classes and looks them up in the table."""
    parts: tuple[type, ...] = (softmax,)
    inner: tuple[str, ...] = ("attend",)
    formula, attention = reading.known(cls, "attentions")
    if formula["late"]:
        reading.mode(mode, MODE)
        parts, inner = (*parts, mode), (*inner, MODE)
    if not issubclass(softmax, nn.Softmax):
        raise published.Unknown(f"its .attend is {softmax.__name__}, not nn.Softmax")
    reading.known(softmax, "linears", "attend")
    splits = linear is nn.Linear
    if splits:
        try:
            reading.known(linear, "linears", "to_qkv")
            parts = *parts, linear
        except published.Unknown as error:
            reading.watched, splits = reading.watched + error.watched, False
    return Code(
        Variant(formula["late"]),
        parts=parts,
        own=frozenset(name for _, name, _ in attention.methods) - {"forward"} | set(inner),
        reads=attention.reads,
        late=formula["late"],
        inner=inner,
        splits=splits,
    )
