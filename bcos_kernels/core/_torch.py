"""Every private function of torch that this package uses, under a name that says what it is used for."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.nn.modules import module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import _get_overloaded_args

__all__ = [
    "CALLS", "GLOBAL_HOOKS", "Convolution", "Dropout", "Function", "NormWithStatistics", "below_autograd",
    "constant_when_compiled", "enable_single_level_autograd_function", "ends_recomputation", "flop_counters",
    "forward_derivatives", "has_global_hook", "is_called_as_usual", "is_distributed", "is_exporting", "is_followed",
    "is_seen", "is_seen_beside_vmap", "is_traced", "largest_gradient", "overloads", "rank_of_quantile", "records",
    "result", "set_tensors", "softmax_backward_in_place", "spin", "transformed", "uncompiled", "unrecorded",
    "unwrap_dead_wrappers", "will_run", "without_saving_hooks", "wrapper_without_second_backward",
]  # fmt: skip


class Function(torch.autograd.function._SingleLevelFunction):
    """A Function whose ``apply`` does not ask for transforms of torch.func, and so may be called within one.

    That of torch.autograd.Function asks for them in C++ since torch 2.14.
    """

    apply: ClassVar[Callable[..., Any]]
    _compiled_autograd_key = staticmethod(torch.autograd.Function._compiled_autograd_key)  # type: ignore[attr-defined]


Convolution, Dropout = _ConvNd, _DropoutNd
"""The base classes of torch's convolutions, of any number of axes, and of its dropouts."""
NormWithStatistics = _NormBase
"""The base class of torch's batch norms and instance norms, which may have running statistics."""

spin = torch.cuda._sleep
"""``spin(cycles)`` keeps the current stream of the GPU busy for so many of its cycles."""

below_autograd = torch._C._AutoDispatchBelowAutograd
"""A context in which operators skip autograd: torch's dispatcher calls the kernels below it."""

overloads = _get_overloaded_args
"""Returns those of the given arguments whose class overrides torch's functions."""

GLOBAL_HOOKS = (
    module._global_forward_pre_hooks, module._global_forward_hooks,
    module._global_backward_pre_hooks, module._global_backward_hooks,
)  # fmt: skip
"""The dicts of these hooks; the others, into which torch's function looks too, hold options of these hooks."""


CALLS = "__call__", "_call_impl"
"""The methods of a module's class by which it is called."""


def is_called_as_usual(cls: Any) -> bool:
    """Whether modules of this class are called as those of torch are."""
    return cls.__call__ is nn.Module.__call__ and cls._call_impl is nn.Module._call_impl


def has_global_hook() -> bool:
    """Whether a hook sees the calls of all modules, beside those of torch's ModuleTracker, which notes names alone."""
    return module._has_any_global_hook() and not all(map(_notes_names, GLOBAL_HOOKS))


def has_hook(module: Any, beside_setters: bool = False) -> bool:
    """Whether a hook of the module's own sees its calls. ``beside_setters`` leaves out those of :func:`set_tensors`."""
    m = module
    before = m._forward_pre_hooks
    if beside_setters and before:
        before = [hook for hook in before.values() if not _sets_a_tensor(hook)]
    return bool(m._forward_hooks or before or m._backward_hooks or m._backward_pre_hooks)


def set_tensors(module: Any) -> None:
    """Runs torch's own hooks that set a module's weight before each call and see nothing of it, as those of pruning."""
    for hook in module._forward_pre_hooks.values():
        if _sets_a_tensor(hook):
            hook(module, ())


_SETTERS = "torch.nn.utils.prune", "torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"


def _sets_a_tensor(hook: Any) -> bool:
    return getattr(type(hook).__call__, "__module__", None) in _SETTERS


def _notes_names(hooks: dict) -> bool:
    tracker: Any = sys.modules.get("torch.utils.module_tracker")
    return not hooks or (
        tracker is not None
        and all(isinstance(getattr(h, "__self__", None), tracker.ModuleTracker) for h in hooks.values())
    )


def records() -> bool:
    """Whether autograd records what is computed: in inference mode it does not, even where gradients are enabled."""
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def result(y: Tensor) -> Tensor:
    """y, or a tensor in its place that is no view: a view that was made without gradients may not be changed in place
    with them.

    A program that is traced or compiled stays the same with gradients and without.
    """
    return y if torch.is_grad_enabled() or is_followed() else y.detach()


def is_traced() -> bool:
    """Whether torch.jit.trace is recording."""
    return torch._C._get_tracing_state() is not None


def is_exporting() -> bool:
    """Whether torch.export is tracing. Dynamo of torch 2.11 takes torch.compiler.is_exporting for True everywhere."""
    return torch.compiler._is_exporting_flag


@contextmanager
def unrecorded() -> Iterator[None]:
    """A context in which torch.jit.trace records nothing and sizes are plain numbers."""
    trace = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(trace)  # type: ignore[attr-defined]


def transformed() -> bool:
    """Whether a transform of torch.func or a trace of torch.jit is active, which must see the operators."""
    return _functorch_is_active() or _tracing_state() is not None


_functorch_is_active, _tracing_state = torch._C._are_functorch_transforms_active, torch._C._get_tracing_state
_modes, _keys = torch._C._len_torch_dispatch_stack, torch._C._dispatch_keys


def forward_derivatives() -> bool:
    """Whether forward-mode derivatives are being computed."""
    return forward_ad._current_level >= 0


def is_followed() -> bool:
    """Whether a compiler, a transform, a trace or forward-mode derivatives must see every operator that is called."""
    return torch.compiler.is_compiling() or transformed() or forward_derivatives()


def _plain_keys(device: str) -> tuple[int, int]:
    """The dispatch keys of an ordinary tensor on ``device``, in inference mode and outside of it."""
    key = torch._C.DispatchKey
    inference = torch._C.DispatchKeySet(getattr(key, device)).add(getattr(key, f"Autocast{device}"))
    return inference.raw_repr(), inference.add(key.ADInplaceOrView).add(getattr(key, f"Autograd{device}")).raw_repr()


_PLAIN = frozenset((*_plain_keys("CPU"), *_plain_keys("CUDA")))


def is_seen(tensors: Iterable[Tensor | None]) -> bool:
    """Whether something must see the operators that are called with these tensors.

    That is a transform, a trace, a dispatch mode, or a tensor that is a subclass, a wrapper or a fake one.
    """
    if _functorch_is_active() or _tracing_state() is not None or _modes() > 0:
        return True
    return not _are_plain(tensors)


def _are_plain(tensors: Iterable[Tensor | None]) -> bool:
    return _PLAIN.issuperset([_keys(t).raw_repr() for t in tensors if t is not None])


def is_distributed(tensors: Iterable[Tensor | None]) -> bool:
    """Whether one of the tensors is a DTensor, which knows the operators of torch alone."""
    distributed: Any = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and any(isinstance(t, distributed.DTensor) for t in tensors)


def is_seen_beside_vmap(tensors: Iterable[Tensor | None]) -> bool:
    """The same within a vmap rule, of which the tensors are the unwrapped ones: whether anything else must see them."""
    levels = torch._C._functorch.get_interpreter_stack()
    return len(levels or ()) != 1 or _tracing_state() is not None or _modes() > 0 or not _are_plain(tensors)


def flop_counters() -> list[Any]:
    """The FlopCounterModes of torch that see the operators that are called now."""
    module: Any = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return []
    stack = sys.modules["torch.utils._python_dispatch"]._get_current_dispatch_mode_stack()
    return [mode.counter for mode in stack if isinstance(mode, module._FlopCounterMode)]


def ends_recomputation(error: Exception) -> bool:
    """Whether torch.utils.checkpoint raised it to end a forward of which it has all that it needs."""
    checkpoint: Any = sys.modules.get("torch.utils.checkpoint")
    return checkpoint is not None and isinstance(error, checkpoint._StopRecomputationError)


def will_run(node) -> bool:
    """Whether the running backward will call this node of the graph and so use the gradient at it."""
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch raises it for a leaf whose gradient autograd.grad was asked for
        return True


def largest_gradient(y: Tensor, x: Tensor) -> int:
    """The bytes of the largest gradient that a backward from y to x alone passes on."""
    first, last = (torch.autograd.graph.get_gradient_edge(t).node for t in (y, x))
    before: dict[Any, list[Any]] = {first: []}
    left: list[Any] = [first]
    while left:
        node = left.pop()
        for following, _ in node.next_functions:
            if following is not None:
                if following not in before:
                    before[following] = []
                    left.append(following)
                before[following].append(node)
    used, left = {last}, [last]
    while left:
        found = [node for node in before.get(left.pop(), ()) if node not in used]
        used.update(found)
        left.extend(found)
    results = (result for node in used for result in node._input_metadata)
    return max(result.dtype.itemsize * math.prod(result.shape) for result in results)


def hook_saved_tensor(ctx, index: int, hook: Callable[[Tensor], Tensor]) -> bool:
    """Puts a hook on a tensor that an autograd Function saved; False where it has hooks already and takes no others."""
    try:
        ctx._raw_saved_tensors[index].register_hooks(hook, hook)
    except RuntimeError:
        return False
    return True


@contextmanager
def without_saving_hooks() -> Iterator[None]:
    """A context without hooks on saved tensors, such as those of save_on_cpu: torch.func raises an error beside them.

    Tensors that were saved before are unpacked by their own hooks.
    """
    saving, taken = torch._C._autograd, []
    while (hooks := saving._top_saved_tensors_default_hooks(True)) is not None:
        taken.append(hooks)
        saving._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for hooks in reversed(taken):
            saving._push_saved_tensors_default_hooks(*hooks)


def softmax_backward_in_place(grad: Tensor, result: Tensor) -> Tensor:
    """The gradient at the input of a softmax over the last dimension, written over ``grad``, that at its result."""
    return torch.ops.aten._softmax_backward_data.out(grad, result, -1, grad.dtype, grad_input=grad)


def rank_of_quantile(quantile: Tensor, count: int) -> float:
    """The rank of a quantile among sorted values as torch.quantile forms it: since torch 2.14 in float64."""
    return float((quantile.double() if torch.__version__ >= "2.14" else quantile) * (count - 1))


def constant_when_compiled(function):
    """Makes Dynamo call the function while it traces, and treat the result as a constant.

    This is torch.compiler.assume_constant_result without its import of Dynamo.
    """
    function._dynamo_marked_constant = True
    return function


def uncompiled(model: Any) -> Any:
    """The model that ``torch.compile`` wrapped; any other model itself."""
    return getattr(model, "_orig_mod", model)


def wrapper_without_second_backward(module: nn.Module) -> str:
    """What of torch.distributed wraps a module and takes the first backward through it for the last; "" if nothing.

    FSDP frees the weights then, which a second backward reads, and drops the gradients that come later;
    DistributedDataParallel with a static graph has the processes add up gradients before there are any.
    """
    if any(kind.__module__.startswith("torch.distributed.fsdp") for kind in type(module).__mro__):
        return "FSDP"
    if isinstance(module, nn.parallel.DistributedDataParallel) and module.static_graph:
        return "DistributedDataParallel(static_graph=True)"
    return ""
