"""What torch's counter of FLOPs, ``FlopCounterMode``, counts of an op: its products, as those of plain layers."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import _torch

__all__ = ["tell_counters"]


def tell_counters(op: Any) -> None:
    """Makes the counters that see the operators called now know how to count those of ``op``.

    A counter copies torch's table of formulas when it is made. It is told here, and not by an entry in that table,
    because the import of the table takes longer than that of this package.
    """
    for counter in () if op.flops is None else _torch.flop_counters():
        counter.flop_registry.setdefault(op.forward_operator._overloadpacket, partial(_forward, op))
        counter.flop_registry.setdefault(op.backward_operator._overloadpacket, partial(_backward, op))


def _forward(op: Any, *args, out_val: Any = None) -> int:
    inputs, spec, _ = op.parsed(args)
    return op.flops(op.call(inputs, spec), None)


def _backward(op: Any, grad: Any, *args, out_val: Any = None) -> int:
    inputs, _, spec, (_, needs, _) = op.parsed_backward(args)
    return op.flops(op.call(inputs, spec), needs)
