"""What a kind of module is for ``accelerate``, ``report``, the tally and ``restore``: these few functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.op import Op
from .published import Code, unreadable

__all__ = ["Kind"]


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of module that is recognised by its code. ``module`` is a third-party module throughout."""

    name: str
    """The name in reports and in the tally: ``"layer"``, ``"alignment"``, ``"norm"``, ``"attention"`` or ``"gate"``."""
    noun: str
    """What one of them is called in a sentence."""
    op: Op | None
    """The op that serves it; None where PyTorch's own operators do."""
    is_candidate: Callable[[Any], bool]
    """``is_candidate(module)``: whether it looks like one; what is no candidate is not reported."""
    code: Callable[[Any], Code | str]
    """``code(module)``: the code of its classes; a string says which of the parts it lacks that a published one has."""
    find: Callable[..., Any]
    """``find(module, x, backend)``, at every call: what ``run`` needs to compute the module's formula of x now. A
    string is the reason why the module's own forward must run instead; None says that it is the better one here, and is
    not counted. Without x it is asked of a module that is not being called."""
    run: Callable[[Any, Tensor, Any, Any, str | None], Tensor]
    """``run(module, x, found, out_dtype, backend)``: the formula, with the values that the module holds now. ``found``
    is what ``find`` returned; ``out_dtype`` is the user's, under autocast alone."""
    call: Callable[[Any, Any], Any] | None = None
    """``call(module, found)``: the op's call for the smallest input that the module takes, for the report; None where
    there is no op."""
    ours: Callable[[Any], Any] = lambda module: True
    """``ours(module)``: what ``find`` would return, of a module of this package whose ``kind`` is this one."""
    measurable: bool = False
    """Whether the formula of unpublished code can be measured."""
    run_paired: Callable[[Any, Tensor, Any, Any, str | None], Tensor] | None = None
    """``run`` for ``accelerate(model, pairs=True)``; None where that is ``run`` itself."""
    note: Callable[[Any, Any], str] = lambda module, found: ""
    """``note(module, found)``: what a report adds about an accelerated module."""
    repeat: Callable[[Any, Tensor, Any, str | None], Tensor | None] | None = None
    """``repeat(module, x, out_dtype, backend)``: what ``find`` and ``run`` would compute, in less time, where all
    that decides reads as in a call before; it returns None where they must be asked."""
    again: Callable[[Any, Tensor], Tensor | None] | None = None
    """``again(module, x)``: the same in one step, where all that decides reads as in the module's last call that
    ``repeat`` served; else None."""

    def variant_of(self, module: Any) -> Any:
        """The published formula of a candidate's code, or the reason why there is none, a string."""
        code = unreadable(module) or self.code(module)
        return code if isinstance(code, str) else code.variant
