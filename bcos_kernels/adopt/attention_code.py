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


@published.reads_code
def read(cls: type, softmax: type, mode: type, linear: type) -> Code:
    """Forms the fingerprints of the classes and looks them up in the table."""
    methods: tuple = ()
    parts: tuple[type, ...] = (softmax,)
    inner: tuple[str, ...] = ("attend",)
    try:
        formula, attention, methods = published.known(cls, "attentions")
        if formula["late"]:
            if mode is type(None):
                raise published.Unknown(f"it has lost its {MODE}", ())
            _, _, more = published.known(mode, "modes", MODE)
            methods, parts, inner = methods + more, (*parts, mode), (*inner, MODE)
        if not issubclass(softmax, nn.Softmax):
            raise published.Unknown(f"its .attend is {softmax.__name__}, not nn.Softmax", ())
        _, _, more = published.known(softmax, "linears", "attend")
        methods += more
    except published.Unknown as error:
        return Code(str(error), methods + error.watched)
    if published.finds_otherwise(cls):
        return Code(f"{published.published_mro(cls)[0].__name__} changes how its attributes are found", methods)
    splits = linear is nn.Linear
    if splits:
        try:
            methods, parts = methods + published.known(linear, "linears", "to_qkv")[2], (*parts, linear)
        except published.Unknown as error:
            methods, splits = methods + error.watched, False
    return Code(
        Variant(formula["late"]),
        tuple(dict.fromkeys(methods)),
        parts,
        own=frozenset(name for _, name, _ in attention.methods) - {"forward"} | set(inner),
        reads=attention.reads,
        late=formula["late"],
        inner=inner,
        splits=splits,
    )
