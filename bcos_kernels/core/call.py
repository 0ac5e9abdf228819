"""The one description of a call, from the public function to the kernel.

Every op has a ``Spec``, its static options, and a ``Call``, a spec with what else decides how the call is served:
shapes, dtypes and the device. Options are flattened for ``torch.library`` here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Call", "Spec", "hash_kept"]

T = TypeVar("T")

_SCHEMAS = {
    "bool": "bool", "int": "int", "float": "float", "float | None": "float?", "torch.dtype": "ScalarType",
    "tuple[int, ...]": "int[]", "tuple[float, float]": "float[]",
}  # fmt: skip
"""How the type of an option is written in a schema of ``torch.library``."""


def hash_kept(cls: type[T]) -> type[T]:
    """Makes the frozen dataclass form its hash once: its objects are keys of dictionaries at every call.

    A copy and a pickle hold the fields alone, because a hash is another one in another process.
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


@dataclass(frozen=True)
class Spec:
    """The static options of an op; the base of every op's own, whose fields are its options."""

    @classmethod
    def schema(cls) -> str:
        """The options as arguments of an operator. Raises TypeError for an option whose type has no schema."""
        unknown = [f"{f.name}: {f.type}" for f in fields(cls) if f.type not in _SCHEMAS]
        if unknown:
            raise TypeError(f"{cls.__name__} has options that no schema can hold: {', '.join(unknown)}")
        return ", ".join(f"{_SCHEMAS[f.type]} {f.name}" for f in fields(cls))  # type: ignore[index]

    def flat(self) -> tuple:
        """The options in the order of :meth:`schema`."""
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @classmethod
    def of_flat(cls, values) -> Any:
        """The spec of which ``values`` are the options; equal ones give the same object, but for symbols."""
        options = tuple(tuple(v) if isinstance(v, (list, tuple)) else v for v in values)
        try:
            return _made(cls, options)  # type: ignore[arg-type]
        except TypeError:  # a symbol of a compiler has no hash
            return cls(*options)


@lru_cache(maxsize=4096)
def _made(cls, values: tuple):
    return cls(*values)


@dataclass(frozen=True)
class Call:
    """A spec, and the device that serves it; the base of every op's own, which adds shapes and dtypes."""

    spec: Any
    device: str
    """The type of the tensors' device, as ``"cpu"``."""

    def now(self):
        """The call under torch's settings now, which decide about precision."""
        return self

    def of_backward(self, needs: tuple[bool, ...]):
        """The call of a backward that forms the gradients of the inputs that ``needs`` names, in their order."""
        return self

    def words(self) -> str:
        """What decides how the call is served, the same in every run."""
        raise NotImplementedError

    def example(self, device: torch.device) -> tuple[tuple, Tensor]:
        """Random inputs of such a call, and a gradient of its first output, for measuring."""
        raise NotImplementedError

    def is_rounding(self, name: str) -> bool:
        """Whether a result is 0 but for rounding, so that two kernels need not agree."""
        return False

    @property
    def amplification(self) -> float:
        """By what the formula multiplies relative rounding errors, at least 1."""
        return 1.0
