"""The published code: which code computes which formula, and whether it still runs.

``published.json`` lists fingerprints and holds no code. ``python -m benchmarks.fingerprints`` adds the fingerprints of
checkouts; a person who has read the code enters the formula beside each of them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..core import _torch, extension
from . import fingerprint

__all__ = [
    "CODES", "PARAMETRIZED", "TABLE", "Code", "Reading", "Theirs", "Unknown", "assigned", "changed_mode",
    "changed_parts", "changing", "code", "finds_otherwise", "origin", "pair", "published_mro", "reads_code", "rows",
    "unreadable", "watched",
]  # fmt: skip

Theirs = Any
"""A third-party module: its code says what it holds; there is no type that does."""

TABLE = Path(__file__).with_name("published.json")


@dataclass(frozen=True, eq=False)
class Code:
    """What the code of a module's class and of its parts' classes computes together. Each kind has its own subclass."""

    variant: Any
    """The formula, or the reason why it is not known, a string."""
    watched: tuple[tuple[object, str, object], ...] = ()
    """``(owner, name, value)``, the owner a class, a module or a function: the variant is valid while every owner's
    attribute of that name is that value."""
    parts: tuple[type, ...] = ()
    """The classes of the parts, which must be called in the usual way."""
    own: frozenset[str] = frozenset()
    """The names of the module's methods and parts: one that is assigned on the instance would take the place."""
    reads: frozenset[str] = frozenset()
    """The attributes of the instance that the code reads."""
    late: bool = False
    """Whether the module has the late explanation mode."""

    def holds(self) -> bool:
        """Whether nothing was replaced since the code was read."""
        if torch.compiler.is_compiling():  # the same test in a form that Dynamo can trace
            same = all(getattr(owner, name, None) is value for owner, name, value in self.watched)
            return same and all(map(_torch.is_called_as_usual, self.parts))
        return _are_held(*self.watched_apart)

    @functools.cached_property
    def watched_apart(self) -> tuple[list, list[str], list]:
        """The owners, the names and the values in ``watched``, and of how ``parts`` are called."""
        calls = [(part, name, getattr(nn.Module, name)) for part in self.parts for name in _torch.CALLS]
        watched = (*self.watched, *calls)
        return [owner for owner, _, _ in watched], [name for _, name, _ in watched], [value for *_, value in watched]


def _are_held_in_python(owners: list, names: list[str], values: list) -> bool:
    try:
        return list(map(getattr, owners, names)) == values
    except AttributeError:  # one of them was deleted
        return False


_C: Any = extension.load()[0]
_are_held = _are_held_in_python if _C is None else _C.are_held

CODES: dict[tuple[type, ...], Any] = {}
"""The code of each combination of classes, as it was read last: whoever takes one from here asks whether it holds.

Classes that torch made for parametrized modules are not among them: see :func:`_codes_of`."""

C = TypeVar("C", bound=Code)


def code(classes: tuple[type, ...], read: Callable[..., C]) -> C:
    """``read(*classes)``: the code of a module's class and of its parts' classes; read again once it was replaced."""
    codes = CODES
    found = codes.get(classes)
    if found is None:
        codes = _codes_of(classes)
        found = codes.get(classes)
    if found is None or not found.holds():
        found = codes[classes] = read(*classes)
    return found


def _codes_of(classes: tuple[type, ...]) -> dict[tuple[type, ...], Any]:
    """Where the code of these classes is kept.

    Torch makes a class for every parametrized module, and its properties hold that module with its tensors. Such a
    class keeps its code itself, in ``_bcos_kernels_codes``, so that both are freed with the module.
    """
    for cls in classes:
        if cls.__module__ == PARAMETRIZED:
            if not hasattr(cls, "_bcos_kernels_codes"):
                setattr(cls, "_bcos_kernels_codes", {})  # noqa: B010
            return getattr(cls, "_bcos_kernels_codes")  # noqa: B009
    return CODES


def published_mro(cls: type) -> tuple[type, ...]:
    """The method resolution order of a class without the classes that ``accelerate`` or ``parametrize`` inserted."""
    return tuple(c for c in cls.__mro__ if "_bcos_kernels_plan" not in vars(c) and c.__module__ != PARAMETRIZED)


PARAMETRIZED = "torch.nn.utils.parametrize"
"""The module of the classes that torch puts on top of a class whose attributes are parametrized."""


def origin(cls: type) -> Any:
    """The class whose forward is a module's own: that which was accelerated, or the class itself."""
    return next((c.__bases__[0] for c in cls.__mro__ if "_bcos_kernels_plan" in vars(c)), cls)


@functools.cache
def _table() -> dict[str, dict]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def rows(section: str) -> dict[str, dict]:
    """Fingerprint -> row of one section of the table."""
    return _table()[section]


def unreadable(module: Theirs) -> str | None:
    """Why no code of its class can tell what a module computes; None where it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a compiled TorchScript module"
    if "forward" in vars(module):
        return "its forward was assigned on the instance"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its weight is not initialised yet"
    return None


def pair(value: Any) -> Any:
    """The value as a pair, since one number stands for both dimensions; a string stays as it is."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * 2 if len(values) == 1 else values


def changed_parts(module: Theirs, names: Iterable[str] | None = None, weighted: Theirs = None) -> str | None:
    """A hook that must see the calls of a module's parts, or of the named ones; None where there is none.

    Hooks of ``weighted`` that only set its weight do not count: whoever computes runs them by ``_torch.set_tensors``.
    """
    if _torch.has_global_hook():
        return "a global module hook must see calls of its parts"
    parts = module._modules
    for name in parts if names is None else names:
        if _torch.has_hook(parts[name], parts[name] is weighted):
            return f"its .{name} has a hook"
    return None


def changing(part: Theirs) -> str | None:
    """Why the weight of a part must be read only by its own code, and as often as there; None where it need not."""
    parametrizations = part._modules.get("parametrizations")
    if parametrizations is None:
        return None
    steps = (step for chain in parametrizations.values() for one in chain for step in one.modules())
    if not any(step.training for step in steps):
        return None
    return "its weight is parametrized: in training every read may change it"


def assigned(module: Theirs, names: Iterable[str], part: str = "") -> str | None:
    """The reason why one of the names of methods and parts is not the class's: it was assigned on the instance.

    ``part`` is the attribute in which the accelerated module holds this one as a part; it holds all others itself.

    Dynamo makes a graph anew when an attribute that was read appears on the instance, and not when a key of ``vars``
    does: so a compiled graph reads the attributes, too.
    """
    if torch.compiler.is_compiling():
        for name in names:
            getattr(module, name, None)
    own = vars(module)
    for name in names:
        if name in own:
            return f"{f'the {name} of its .{part}' if part else f'its {name}'} was assigned on the instance"
    return None


def changed_mode(mode: Theirs, name: str = "dynamic_multiplication") -> str | None:
    """What makes the late explanation mode of a module other than the published one; None where nothing does.

    ``name`` is the attribute in which the module holds the mode.
    """
    if (reason := assigned(mode, ("forward",), name)) is not None:
        return reason
    if not isinstance(mode.state, MutableMapping) or "fixed_weights" not in mode.state:
        return f"its {name} has no state with the key 'fixed_weights'"
    return None


class Unknown(Exception):
    """Code that is not published. The message says which code that is."""

    def __init__(self, reason: str, watched: tuple = ()) -> None:
        super().__init__(reason)
        self.watched = watched
        """What the code was read from, as in :class:`Code`: a change of it may make the code a published one."""


class Reading:
    """Looks up the code of a module's class and of its parts' classes, and keeps what it was read from."""

    def __init__(self) -> None:
        self.watched: tuple = ()

    def known(
        self, cls: Any, section: str, part: str = "", roots: tuple[str, ...] = ("forward",)
    ) -> tuple[dict, fingerprint.Fingerprint]:
        """``(formula, fingerprint)`` of a class in one section of the table.

        ``part`` is the attribute in which the module holds it as a part; PyTorch's own code is then known, too.
        ``roots`` are the methods that the module calls.

        Raises:
            Unknown: the code is not published, or a part is not called as modules are.
        """
        within, what = (f"its .{part}: ", "ones") if part else ("", section)
        mro = published_mro(cls)
        try:
            found = fingerprint.of(mro, roots)
        except fingerprint.Unreadable as error:
            raise Unknown(f"{within}{error}", watched(cls, error)) from None
        self.watched += watched(cls, found)
        formula = rows(section).get(found.digest, {}).get("formula")
        if part and found.digest == "torch" and cls.forward in _PARTS:
            formula = {"unit": False}
        if not formula:
            raise Unknown(f"{within}the code of {mro[0].__name__}.forward is not among the published {what}")
        if "left" in formula:
            raise Unknown(f"{within}{formula['left']}")
        if part and not (_torch.is_called_as_usual(cls) and not finds_otherwise(cls)):
            calls = tuple((cls, call, getattr(cls, call)) for call in _torch.CALLS)
            raise Unknown(f"{within}{cls.__name__} changes how a module is called or holds attributes", calls)
        return formula, found

    def mode(self, cls: type, name: str) -> None:
        """The late explanation mode, which the module holds under this name; raises :class:`Unknown` without one."""
        if cls is type(None):
            raise Unknown(f"it has lost its {name}")
        self.known(cls, "modes", name)


def reads_code(kind: type[C]) -> Callable[[Callable[..., C]], Callable[..., C]]:
    """Makes ``read(cls, *parts)`` of a function that is also given a :class:`Reading` and may raise :class:`Unknown`.

    A compiled graph breaks where it is called: this is torch.compiler.disable without importing Dynamo.
    """

    def reads(function: Callable[..., C]) -> Callable[..., C]:
        def read(cls: Any, *parts: type) -> C:
            reading = Reading()
            try:
                found = function(reading, cls, *parts)
            except Unknown as error:
                return kind(str(error), reading.watched + error.watched)
            if finds_otherwise(cls):
                reason = f"{published_mro(cls)[0].__name__} changes how its attributes are found"
                return kind(reason, reading.watched)
            return replace(found, watched=tuple(dict.fromkeys(reading.watched)))

        setattr(read, "_torchdynamo_disable", True)  # noqa: B010
        return read

    return reads


_PARTS = nn.Conv2d.forward, nn.Linear.forward, nn.Sequential.forward, nn.Softmax.forward
"""The code of PyTorch's own modules that published modules hold as parts."""


def finds_otherwise(cls: Any) -> bool:
    """Whether instances of a class find their attributes in another way than modules do."""
    return cls.__getattr__ is not nn.Module.__getattr__ or cls.__getattribute__ is not object.__getattribute__


def watched(cls: type, found: fingerprint.Fingerprint | fingerprint.Unreadable) -> tuple:
    """What to watch: each method at its definer and as the module's class finds it, and the names that code uses."""
    before = origin(cls)
    watched = [*found.names]
    for owner, name, value in found.methods:
        watched.append((owner, name, value))
        finder = before if name == "forward" else cls
        if getattr(finder, name, None) is value and finder is not owner:
            watched.append((finder, name, value))
    return tuple(watched)
