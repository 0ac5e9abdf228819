"""Every use of what torch keeps private, under the name of what it is used for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.overrides import _get_overloaded_args

__all__ = [
    "below_autograd", "constant_when_compiled", "enable_single_level_autograd_function", "forward_derivatives",
    "is_plain", "is_traced", "is_watched", "overloads", "saved_tensor_of", "transformed", "unrecorded",
    "unwrap_dead_wrappers", "will_run",
]  # fmt: skip

below_autograd = torch._C._AutoDispatchBelowAutograd
"""Within the context operators are served by what lies below autograd."""

overloads = _get_overloaded_args
"""Those of some arguments whose class overrides torch's functions."""


def is_traced() -> bool:
    """Whether torch.jit.trace records what runs."""
    return torch._C._get_tracing_state() is not None


@contextmanager
def unrecorded() -> Iterator[None]:
    """Within the context torch.jit.trace records nothing, and sizes are numbers."""
    trace = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(trace)  # type: ignore[attr-defined]


def transformed() -> bool:
    """Whether torch.func or a trace of torch.jit is to see the operators and not the Functions around them."""
    return torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None


def forward_derivatives() -> bool:
    """Whether forward-mode derivatives are computed."""
    return forward_ad._current_level >= 0


def _plain_keys(device: str) -> tuple[int, int]:
    """The dispatch keys of a tensor that is nothing but memory on ``device``, in and out of inference mode."""
    key = torch._C.DispatchKey
    inference = torch._C.DispatchKeySet(getattr(key, device)).add(getattr(key, f"Autocast{device}"))
    return inference.raw_repr(), inference.add(key.ADInplaceOrView).add(getattr(key, f"Autograd{device}")).raw_repr()


_PLAIN = frozenset((*_plain_keys("CPU"), *_plain_keys("CUDA")))


def is_plain(t: Tensor) -> bool:
    """Whether the tensor is nothing but memory: no subclass, no wrapper, no fake."""
    return torch._C._dispatch_keys(t).raw_repr() in _PLAIN


def is_watched() -> bool:
    """Whether a mode is to see every operator."""
    return torch._C._len_torch_dispatch_stack() > 0


def will_run(node) -> bool:
    """Whether the running backward will call the node of the graph, so that its gradient will be used."""
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # raised for a leaf that autograd.grad was asked for
        return True


def saved_tensor_of(ctx, index: int):
    """One of the tensors that a Function saved, as autograd keeps it."""
    return ctx._raw_saved_tensors[index]


def constant_when_compiled(function):
    """Dynamo calls the function while it traces and takes its result for a constant.

    As torch.compiler.assume_constant_result does, without importing Dynamo.
    """
    function._dynamo_marked_constant = True
    return function
