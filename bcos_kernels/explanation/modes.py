"""The explanation modes of a model's modules, whichever attribute or method holds them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["explanation_mode", "has_explanation_mode"]

FROZEN = "fixed_weights"
"""The key under which the late mode's mapping says whether the scale is frozen."""


class _Context:
    """One use of :func:`explanation_mode` of a model that has not ended."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []
        """What brings back what this one found, and then what earlier ones found that have ended and left it to this.
        Each step may be done again."""


_lock = threading.RLock()
_contexts: WeakKeyDictionary[nn.Module, list[_Context]] = WeakKeyDictionary()
"""Those of each model that have not ended, in the order in which they were entered."""


@contextmanager
def explanation_mode(model: nn.Module) -> Iterator[None]:
    """A context in which every scale of ``model`` is a constant; afterwards each module is as it was before.

    Early modes are switched by ``set_explanation_mode(bool)`` (``bcos``, B-cosification), ``explanation_mode(bool)``
    (the first version of B-cos networks) or ``explanationMode(bool)`` (a copy of it), late ones by
    ``state["fixed_weights"]`` (model guidance). A model without any of them stays as it is. Several threads,
    generators or coroutines may be in the mode of one model, and leave it in any order: the last that leaves it brings
    back what the first one found.

    Args:
        model: a module, accelerated or not.
    """
    context = _Context()
    try:
        _enter(model, context)
        yield
    finally:
        try:
            _leave(model, context)
        except BaseException:  # an interrupt, with some of the modes brought back
            _leave(model, context)
            raise


def _enter(model: nn.Module, context: _Context) -> None:
    """Turns the modes on, unless they are on already."""
    with _lock:
        contexts = _contexts.setdefault(model, [])
        found_on = bool(contexts) and _is_on(model)  # nothing is switched then, because other threads may be computing
        contexts.append(context)
        if not found_on:
            _switch_on(model, context)


def _leave(model: nn.Module, context: _Context) -> None:
    """Brings back what was found, or leaves that to the context that was entered next; again without effect."""
    with _lock:
        contexts = _contexts.get(model, [])
        if context not in contexts:
            return
        following = contexts[contexts.index(context) + 1 :]
        if following:
            following[0].steps = following[0].steps + context.steps
        else:
            with ExitStack() as steps:  # the others are done as well if one raises an error
                for step in reversed(context.steps):
                    steps.callback(step)
        contexts.remove(context)


def _is_on(model: nn.Module) -> bool:
    """Whether each module is in the mode whose mode can be seen."""
    owns = [vars(module) for module in model.modules()]
    modes = [own["detach"] for own in owns if "detach" in own]
    states = [own["state"] for own in owns if isinstance(own.get("state"), MutableMapping)]
    return all(modes) and all(state[FROZEN] for state in states if FROZEN in state)


def _switch_on(model: nn.Module, context: _Context) -> None:
    """Turns the modes on, after the context has got the steps that bring back what was before."""
    modules: list[Any] = list(model.modules())
    switches = [(module, switch) for module in modules if (switch := _switch(module)) is not None]
    recorded = {module: _recorded(module) for module in modules}
    context.steps = [
        partial(switch, bool(getattr(module, "is_in_explanation_mode", False)))
        for module, switch in reversed(switches)
        if not recorded[module]
    ]  # come first, because they may switch modules within theirs, too
    context.steps += [step for module in modules for step in recorded[module]]
    for _, switch in switches:
        switch(True)


def has_explanation_mode(model: nn.Module) -> bool:
    """Whether some module has an explanation mode."""
    return any(_switch(module) is not None for module in model.modules())


def _switch(module: Any) -> Callable[[bool], object] | None:
    """The function that turns the module's own mode on and off."""
    for name in ("set_explanation_mode", "explanation_mode", "explanationMode"):
        switch = getattr(module, name, None)
        if callable(switch) and inspect.signature(switch).parameters:  # without any: a context over all of a model
            return switch
    state = vars(module).get("state")
    return partial(_set, state) if isinstance(state, MutableMapping) and FROZEN in state else None


def _set(state: MutableMapping, frozen: bool) -> None:
    state[FROZEN] = frozen


def _recorded(module: Any) -> list[Callable[[], object]]:
    """The steps that bring back the mode that the module holds in attributes of its own."""
    own = vars(module)
    steps: list[Callable[[], object]] = []
    if isinstance(state := own.get("state"), MutableMapping) and FROZEN in state:
        steps.append(partial(_set, state, state[FROZEN]))
    if "detach" in own:
        steps.append(partial(setattr, module, "detach", own["detach"]))
    return steps
