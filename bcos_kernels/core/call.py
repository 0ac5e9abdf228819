"""The description of a call that is used everywhere from the public function to the kernel.

Every op has a ``Spec``, which holds its static options, and a ``Call``, which adds what else decides how the call is
served: shapes, dtypes and the device. Options are flattened for ``torch.library`` here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeVar

import torch

from . import extension

__all__ = ["Call", "Spec", "changed", "hash_kept", "kept", "short"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable)

_SCHEMAS = {
    "str": "str", "bool": "bool", "int": "int", "float": "float", "float | None": "float?", "torch.dtype": "str",
    "tuple[int, ...]": "int[]", "tuple[float, float]": "float[]",
}  # fmt: skip
"""The type of an option -> how a schema of ``torch.library`` writes it."""


def hash_kept(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass compute its hash once, because its objects are keys of dictionaries at every call.

    Copies and pickles hold the fields alone, because another process has other hashes.
    """
    formed = cls.__hash__

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            object.__setattr__(self, "_hash", formed(self))
            return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    for method in (__hash__, __getstate__):
        setattr(cls, method.__name__, method)
    return cls


def kept(make: F) -> F:
    """``make`` with its results kept, so that equal arguments give the same object.

    Nothing is kept of arguments without a hash, as the symbolic sizes of a compiler are.
    """
    known = lru_cache(maxsize=4096)(make)

    @wraps(make)
    def found(*arguments):
        try:
            return known(*arguments)
        except TypeError:
            return make(*arguments)

    return found  # type: ignore[return-value]


@dataclass(frozen=True)
class Spec:
    """The static options of an op. Each op has its own subclass, whose fields are its options."""

    native_class = ""
    """The name of the class that holds the same options in the compiled extension."""
    in_python = frozenset(("detach", "paired"))
    """The options that it does not hold."""
    paired = False
    """Whether the backward may leave its last pass to the call that made x; see :mod:`bcos_kernels.core.pairs`."""

    @cached_property
    def native(self) -> Any:
        """The same options as an object of the compiled extension."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.in_python}
        return getattr(extension.load()[0], self.native_class)(**options)

    @classmethod
    def schema(cls) -> str:
        """The options as arguments of an operator. Raises TypeError for an option whose type has no schema."""
        unknown = [f"{f.name}: {f.type}" for f in fields(cls) if f.type not in _SCHEMAS]
        if unknown:
            raise TypeError(f"{cls.__name__} has options that no schema can hold: {', '.join(unknown)}")
        return ", ".join(f"{_SCHEMAS[f.type]} {f.name}" for f in fields(cls))  # type: ignore[index]

    def flat(self) -> tuple:
        """The options in the order of :meth:`schema`, written so that programs of AOTInductor hand them on.

        A dtype is its name, because torch 2.11 hands on another, and an empty tuple is ``_EMPTY``, because it hands on
        None.
        """
        return tuple(_written(getattr(self, name)) for name in self.__dataclass_fields__)

    @classmethod
    def of_flat(cls, values) -> Any:
        """The spec whose options are ``values``. Equal values give the same object, except for symbolic ones."""
        return _made(cls, tuple(_tuple(v) if isinstance(v, (list, tuple)) else v for v in values))


_EMPTY = (-1,)
"""Stands for an empty tuple of sizes, none of which is below 0, among the arguments of an operator."""


def _written(value):
    if type(value) is torch.dtype:
        return str(value).removeprefix("torch.")
    return _EMPTY if type(value) is tuple and not value else value


def _tuple(values) -> tuple:
    is_empty = len(values) == 1 and type(values[0]) is int and values[0] == -1
    return () if is_empty else tuple(values)


@kept
def _made(cls, values: tuple):
    return cls(*(getattr(torch, v) if f.type == "torch.dtype" else v for f, v in zip(fields(cls), values, strict=True)))


@dataclass(frozen=True)
class Call:
    """A spec and the device that serves it. Each op has its own subclass, which adds shapes and dtypes.

    Code that a compiler traces makes it by keywords: Dynamo of torch 2.11 counts ``arch`` and ``index`` among the
    positional arguments, and hands those that follow to the wrong fields.
    """

    spec: Any
    device: str
    """The type of the tensors' device, such as ``"cpu"``."""
    arch: str = field(default="none", kw_only=True)
    """The GPU's architecture: ``sm_<capability>``, ``gfx<name>``, or ``none`` where there is no GPU."""
    index: int | None = field(default=None, kw_only=True)
    """Which of the machine's GPUs that is; None for the current one, and where there is no GPU."""

    def now(self):
        """The same call under torch's present settings, which decide the precision of products."""
        return self

    def of_backward(self, needs: tuple[bool, ...]):
        """The call of a backward; ``needs`` says for each input whether its gradient is formed."""
        return self

    def example(self, device: torch.device) -> tuple[Any, torch.Tensor]:
        """Random inputs for such a call, and a random gradient at its first output."""
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(0)

        def random(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)

        return self.example_of(random)

    def example_of(self, random: Callable[..., torch.Tensor]) -> tuple[Any, torch.Tensor]:
        """What :meth:`example` returns, of tensors that ``random(shape, dtype, scale=1.0)`` makes."""
        raise NotImplementedError

    @property
    def intermediates(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """The shapes and dtypes of the op's intermediates; empty where no second derivative has gradients at them."""
        return ()

    @property
    def has_gradient_map(self) -> bool:
        """Whether dx is, at every channel, a map of the gradient and of x; see :mod:`bcos_kernels.core.pairs`."""
        return False

    @property
    def takes_gradient_map(self) -> bool:
        """Whether a backward reads its first output, and may be given a gradient that has to pass such a map."""
        return False

    def has_second(self, frozen: bool) -> bool:
        """Whether candidates may form the second derivative of a backward with this ``frozen``."""
        return False

    def words(self) -> str:
        """A text of all that decides how the call is served, except the device and the explanation mode.

        It is the same in every process.
        """
        left_out = ("spec", "device", "arch", "index", "detach")
        told = ((owner, f.name) for owner in (self, self.spec) for f in fields(owner) if f.name not in left_out)
        return " ".join(f"{name}={getattr(owner, name)}" for owner, name in told)

    @property
    def label(self) -> str:
        """What a table calls it: its sizes, and the options that are not the usual ones."""
        return self.words()

    def is_rounding(self, name: str) -> bool:
        """Whether the named result is 0 apart from rounding errors, so that two kernels need not agree on it."""
        return False

    @property
    def amplification(self) -> float:
        """The factor by which the formula multiplies relative rounding errors, at least 1."""
        return 1.0


changed = lru_cache(maxsize=4096)(replace)
"""``changed(call, name=value, ...)``: the call with other values in these fields; equal arguments give one object."""


def short(value: Any) -> str:
    """A value as a table shows it: one number for a tuple of equal ones, and a dtype without ``torch.``."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return str(value[0])
    return str(value).replace(" ", "").removeprefix("torch.")
