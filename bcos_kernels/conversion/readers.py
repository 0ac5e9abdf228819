"""Finds the norm that alone reads the output of a layer: torch.fx traces the forwards of a model.

A trace sees what a forward does with the values that it is given, and which parts of a layer or norm it reads past
their calls. What a forward that cannot be traced calls must stay as it is.
"""

from __future__ import annotations

import copy
import gc
import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any
from weakref import ref

import torch
from torch import Tensor, fx, nn

from ..adopt import layer as layers
from ..adopt import norm as norms
from ..adopt.kinds import kind_of
from ..core import _torch
from ..modules import BcosLayer, Detachable

__all__ = ["Readers", "is_layer", "is_norm"]


def is_layer(module: Any) -> bool:
    """Whether the module is a B-cos layer, of this package or of other code."""
    return isinstance(module, BcosLayer) or layers.is_candidate(module)


def is_norm(module: Any) -> bool:
    """Whether the module is a norm with an explanation mode, of this package or of other code."""
    own = isinstance(module, Detachable) and module.kind == "norm"
    return own or (not isinstance(module, Detachable) and norms.is_candidate(module))


OPENED = "a forward reads its parts instead of calling it"


class Readers:
    """Which norms read which layers of a model, as far as it is known."""

    def __init__(self, model: nn.Module) -> None:
        self.behind: dict[str, str] = {}
        """Name of a layer -> name of the norm that alone reads its output."""
        self.staying: dict[str, str] = {}
        """Name of a module that must stay what it is -> why."""
        self._follow(model, "")

    def _follow(self, model: nn.Module, name: str) -> None:
        if is_layer(model) or is_norm(model) or not any(map(is_layer, model.modules())):
            return
        if type(model).forward is nn.Module.forward:  # a container, whose modules are called one by one
            for below, child in model.named_children():
                self._follow(child, f"{name}.{below}" if name else below)
            return
        if "forward" in vars(model):  # fx would trace that of the class
            self._stay(model, name, "the forward that calls it was assigned on the instance")
            return
        try:
            traces = _traces(model)
        except Exception as error:  # whatever such a forward raises of symbolic values
            self._stay(model, name, _untraced(error))
            return
        prefix = f"{name}." if name else ""
        for below, failure in traces[0].opaque.items():
            module = model.get_submodule(below)
            if failure is None:
                self._follow(module, prefix + below)
            else:
                self._stay(module, prefix + below, _untraced(failure))
        opened = set().union(*(trace.opened() for trace in traces))
        called = set().union(*(trace.called() for trace in traces))
        self.staying |= {prefix + below: OPENED for below in opened}
        for below in called:  # a module below one that was traced by itself may be called past it
            self.behind.pop(prefix + below, None)
        found = set.intersection(*(set(trace.pairs()) for trace in traces))
        self.behind |= {prefix + layer: prefix + norm for layer, norm in found if not {layer, norm} & opened}

    def _stay(self, model: nn.Module, name: str, reason: str) -> None:
        """Notes that a forward which is not known may do anything with the modules below."""
        self.staying |= {below: reason for below, _ in model.named_modules(prefix=name) if below != name}


def _untraced(error: Exception) -> str:
    return f"torch.fx cannot trace the forward that calls it: {type(error).__name__}: {error}".partition("\n")[0]


# one trace


class _Value(fx.Proxy):
    """Stands for a tensor; it also says so where a forward asks whether it is one."""

    _is_param = _is_buffer = False

    @property  # type: ignore[misc]
    def __class__(self):
        return Tensor


class _Trace(fx.Tracer):
    """What one call of a forward does. Modules with an explanation mode, with hooks and in ``opaque`` are not entered.

    ``opaque`` holds the names of other modules that are not entered, with the error of their forward; the trace adds
    those that have hooks, which would be run, with None. Functions of einops and math are recorded as calls.
    """

    def __init__(self, opaque: dict[str, Exception | None]) -> None:
        recorded = tuple(sys.modules[name] for name in ("math", "einops") if name in sys.modules)
        super().__init__(autowrap_modules=recorded)  # type: ignore[arg-type]  # torch declares a tuple of one
        self.opaque = opaque
        self.failed: str | None = None
        """The innermost module whose forward could not be traced."""
        self._made: list[tuple[ref, fx.Node]] = []
        self._read: set[int] = set()
        self._leaves: set[int] = set()

    def trace(self, root: Any, concrete_args=None) -> fx.Graph:
        self._names = {id(module): name for name, module in root.named_modules()}
        known = (m for m in root.modules() if isinstance(m, Detachable) or kind_of(m) is not None)
        self._leaves = set(map(id, known))
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if id(m) in self._leaves or module_qualified_name in self.opaque:
            return True
        if _torch.has_hook(m):
            self.opaque[module_qualified_name] = None
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward, args: tuple, kwargs: dict) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self._names.get(id(m))
            raise

    def proxy(self, node: fx.Node) -> fx.Proxy:
        value = _Value(node, self)
        self._made.append((ref(value), node))
        return value

    def create_arg(self, a: Any) -> Any:
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        self._read.add(id(attr_val))
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def called(self) -> Counter:
        """How often each module that was not entered was called."""
        return Counter(str(node.target) for node in self.graph.nodes if node.op == "call_module")

    def opened(self) -> set[str]:
        """The layers and norms of which parts were read, or called."""
        called, found = self.called(), set()
        for name, module in self.root.named_modules():
            if not (is_layer(module) or is_norm(module)):
                continue
            inner = list(module.modules())[1:]
            parts = [*inner, *module.parameters(), *module.buffers()]
            if self._read & set(map(id, parts)) or any(other.startswith(f"{name}.") for other in called):
                found.add(name)
        return found

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The layers whose output was read once, by a norm, and these norms."""
        kept, times = self._kept(), self.called()
        for norm in self.graph.nodes:
            before = norm.args[0] if norm.op == "call_module" and len(norm.args) == 1 and not norm.kwargs else None
            if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
                continue
            first, second = str(before.target), str(norm.target)
            alone = times[first] == times[second] == 1 and before not in kept
            if alone and is_layer(self.root.get_submodule(first)) and is_norm(self.root.get_submodule(second)):
                yield first, second

    def _kept(self) -> set[fx.Node]:
        """The values that still exist after the call, because the forward stored them somewhere."""
        if any(value() is not None for value, _ in self._made):
            gc.collect()
        return {node for value, node in self._made if value() is not None}


MOST_CALLS = 16


def _traces(model: nn.Module) -> list[_Trace]:
    """A trace of each way to call a forward: with and without the arguments that are None or a bool by default.

    Each with and without gradients, on which a forward may depend, as one does that makes checkpoints.
    """
    calls = [dict(found) for found in product(*_choices(model))]
    if len(calls) > MOST_CALLS:
        raise ValueError(f"its arguments can be given or left out in {len(calls)} ways, more than {MOST_CALLS}")
    opaque: dict[str, Exception | None] = {}
    while True:
        known, traces = len(opaque), []
        for call, records in product(calls, (True, False)):
            with torch.set_grad_enabled(records):
                traces.append(_traced(model, call, opaque))
        if len(opaque) == known:
            return traces


def _choices(model: nn.Module) -> Iterator[list[tuple[str, Any]]]:
    parameters = inspect.signature(inspect.unwrap(type(model).forward)).parameters.values()
    for parameter in parameters:
        if parameter.default is None:
            yield [(parameter.name, None), (parameter.name, fx.PH)]
        elif isinstance(parameter.default, bool):
            yield [(parameter.name, False), (parameter.name, True)]


def _traced(model: nn.Module, call: dict[str, Any], opaque: dict[str, Exception | None]) -> _Trace:
    """The trace of one call; a module whose forward cannot be traced joins ``opaque``."""
    while True:
        tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
        trace = _Trace(opaque)
        try:
            trace.trace(copy.deepcopy(model, tensors), call)  # a forward may store what it is given
            return trace
        except Exception as error:
            if not trace.failed or trace.failed in opaque:
                raise
            opaque[trace.failed] = error
