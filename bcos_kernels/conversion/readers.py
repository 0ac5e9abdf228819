"""Finds the norm that alone reads the output of a layer: torch.fx traces the forwards of a model.

A trace sees what a forward does with the values that it is given, and which parts of a layer or norm it reads past
their calls. Of a forward that cannot be traced, the source tells which of its modules it does no more than call.
"""

from __future__ import annotations

import ast
import copy
import gc
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from types import ModuleType
from typing import Any
from weakref import ref

from torch import Tensor, fx, nn

from ..adopt import fingerprint
from ..adopt import layer as layers
from ..adopt import norm as norms
from ..adopt.kinds import kind_of
from ..modules import BcosLayer, Detachable

__all__ = ["Readers", "is_layer", "is_norm"]


def is_layer(module: Any) -> bool:
    """Whether the module is a B-cos layer, of this package or of other code."""
    return isinstance(module, BcosLayer) or layers.is_candidate(module)


def is_norm(module: Any) -> bool:
    """Whether the module is a norm with an explanation mode, of this package or of other code."""
    own = isinstance(module, Detachable) and module.kind == "norm"
    return own or (not isinstance(module, Detachable) and norms.is_candidate(module))


OPENED = "a forward does more with it than call it, and may read its parts"


class Readers:
    """Which norms read which layers of a model, as far as it is known."""

    def __init__(self, model: nn.Module) -> None:
        self.behind: dict[str, str] = {}
        """Name of a layer -> name of the norm that alone reads its output."""
        self.untraced: dict[str, str] = {}
        """Name of a module -> why it is not known what its forward, or one that calls its modules, does."""
        self.opened: set[str] = set()
        """The names of layers and norms of which a forward reads parts: they must stay what they are."""
        self._follow(model, "")

    def _follow(self, model: nn.Module, name: str) -> None:
        if is_layer(model) or is_norm(model) or not any(map(is_layer, model.modules())):
            return
        if "forward" in vars(model):  # it may call any module below, and fx would trace the one of the class
            self._leave(model, name, "it was assigned on the instance")
            return
        try:
            traces = _traces(model)
        except Exception as error:  # whatever such a forward raises of symbolic values
            self._look_into(model, name, error)
            return
        prefix = f"{name}." if name else ""
        for below, failure in traces[0].opaque.items():
            if failure is None:
                self._follow(model.get_submodule(below), prefix + below)
            else:
                self._look_into(model.get_submodule(below), prefix + below, failure)
        opened = set().union(*(trace.opened() for trace in traces))
        called = set().union(*(trace.called() for trace in traces))
        self.opened |= {prefix + below for below in opened}
        for below in called:  # a module below one that was traced by itself may be called past it
            self.behind.pop(prefix + below, None)
        found = set.intersection(*(set(trace.pairs()) for trace in traces))
        self.behind |= {prefix + layer: prefix + norm for layer, norm in found if not {layer, norm} & opened}

    def _look_into(self, model: nn.Module, name: str, error: Exception) -> None:
        """Follows the modules that a forward which cannot be traced does no more than call."""
        self.untraced[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        entered = _entered(model)
        for child, module in model.named_children():
            below = f"{name}.{child}" if name else child
            if entered is not None and child not in entered:
                self._follow(module, below)
                continue
            self._leave(module, below, self.untraced[name])
            if entered is not None and (is_layer(module) or is_norm(module)):
                self.opened.add(below)

    def _leave(self, model: nn.Module, name: str, reason: str) -> None:
        """Notes that the modules below may be called by a forward that is not known."""
        for below, _ in model.named_modules(prefix=name):
            self.untraced.setdefault(below, reason)


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
    those that have hooks, which would be run, with None.
    """

    def __init__(self, opaque: dict[str, Exception | None]) -> None:
        super().__init__()
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
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
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
    """A trace of each way to call a forward: with and without the arguments that are None or a bool by default."""
    calls = [dict(found) for found in product(*_choices(model))]
    if len(calls) > MOST_CALLS:
        raise ValueError(f"its arguments can be given or left out in {len(calls)} ways, more than {MOST_CALLS}")
    opaque: dict[str, Exception | None] = {}
    while True:
        known, traces = len(opaque), [_traced(model, call, opaque) for call in calls]
        if len(opaque) == known or len(calls) == 1:
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


# what the source of a forward tells


def _entered(model: Any) -> set[str] | None:
    """The children whose modules a forward may call, or read, one by one; None where it may be any of them."""
    order, entered = type(model).__mro__, set()
    waiting: list[tuple[str, tuple[type, ...]]] = [("forward", order)]
    seen = set()
    while waiting:
        name, kinds = waiting.pop()
        owner = next((kind for kind in kinds if name in vars(kind)), None)
        if (owner, name) in seen:
            continue
        seen.add((owner, name))
        if owner is None:
            if _holds_module(getattr(model, name, None)):
                return None
            continue
        if owner is nn.Module and name == "training":
            continue
        try:
            read = list(_attributes(f"{owner.__name__}.{name}", vars(owner)[name]))
        except fingerprint.Unreadable:
            return None
        for attribute, of_super, called in read:
            if attribute in model._modules and not of_super:
                entered |= set() if called else {attribute}
            elif attribute == "" or attribute in vars(nn.Module):
                return None
            else:
                waiting.append((attribute, order[order.index(owner) + 1 :] if of_super else order))
    return entered


def _attributes(title: str, method: Any) -> Iterator[tuple[str, bool, bool]]:
    """The attributes of ``self`` in a method, whether each is that of ``super()``, and whether it is called.

    An empty one stands for ``self`` itself.
    """
    function = getattr(method, "fget", None) or inspect.unwrap(getattr(method, "__func__", method))
    if not inspect.isfunction(function):
        return
    definition = fingerprint.definition_of(title, function)
    nodes = list(ast.walk(definition))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    first = definition.args.args[0].arg if definition.args.args else None
    inner = set()
    for node in nodes:
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == first:
            inner.add(id(node.value))
            yield node.attr, False, id(node) in called
        elif fingerprint.is_super(node.value):
            yield node.attr, True, True
    if any(isinstance(node, ast.Name) and node.id == first and id(node) not in inner for node in nodes):
        yield "", False, False


def _holds_module(value: Any, depth: int = 4) -> bool:
    """Whether a forward that reads the value may find a module in it."""
    if isinstance(value, nn.Module) or depth == 0:
        return True
    if isinstance(value, Tensor):
        return False
    held = [
        getattr(value, "__self__", None),
        *(cell.cell_contents for cell in getattr(value, "__closure__", None) or ()),
    ]
    held += vars(value).values() if hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType)) else ()
    held += value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list, set)) else ()
    return any(_holds_module(inner, depth - 1) for inner in held if inner is not None)
