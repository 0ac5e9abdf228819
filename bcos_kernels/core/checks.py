"""Checks of arguments that all ops share: every error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

__all__ = [
    "Described", "autocast_dtype", "check_dense", "check_model", "check_tensor", "described", "flag", "in_training",
    "integer", "late_mode", "out_dtype", "pair", "real", "sizes", "without_autocast",
]  # fmt: skip


class Described(NamedTuple):
    """What a plan depends on of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    layout: torch.layout


def check_tensor(name: str, t: Any) -> Tensor:
    """The argument, which must be a tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: a Tensor is needed, not {type(t).__name__}")
    return t


def described(name: str, t: Any, optional: bool) -> Described | None:
    """What a plan depends on of a tensor; None for None where the argument is ``optional``."""
    if t is None and optional:
        return None
    t = check_tensor(name, t)
    return Described(t.shape, t.dtype, t.device, t.layout)


def check_dense(name: str, t: Described, device: torch.device) -> None:
    """Raises TypeError or ValueError unless a tensor is dense, of a floating-point dtype and on x's ``device``."""
    if not t.dtype.is_floating_point:
        raise TypeError(f"{name} has dtype {t.dtype}: a floating-point dtype is needed")
    if t.layout != torch.strided:
        raise TypeError(f"{name} has layout {t.layout}: torch.strided is needed")
    if t.device != device:
        raise ValueError(f"{name} is on {t.device}, x on {device}: both must be on one device")


def check_model(model: Any) -> None:
    """Raises TypeError if ``model`` is not a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: a torch.nn.Module is needed, not {type(model).__name__}")


def in_training(module: nn.Module) -> bool:
    """Whether the module computes what it does in training.

    Layers of einops compute the same in either mode, and those of a copy or a pickle are in training mode.
    """
    return module.training and not type(module).__module__.startswith("einops.")


def integer(name: str, value: Any, least: int) -> int:
    """The value as an int of at least ``least``; a symbolic int passes unchecked."""
    if isinstance(value, torch.SymInt) or (type(value) is int and least <= value < 2**31):
        return cast(int, value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r}: an int is needed, not {type(value).__name__}")
    number = int(value)
    if not least <= number < 2**31:
        raise ValueError(f"{name}={value}: must be at least {least} and below 2**31")
    return number


_COUNTS = {1: "one int", 2: "one or two ints", 3: "one or three ints"}


def sizes(name: str, value, least: int, axes: int) -> tuple[int, ...]:
    """An int of at least ``least`` for each axis, from one int or a tuple of one or of all."""
    if isinstance(value, (tuple, list)):
        if len(value) not in (1, axes):
            raise ValueError(f"{name}={value!r}: an int, or a tuple of {_COUNTS[axes]} is needed")
        value = tuple(value) * (axes if len(value) == 1 else 1)
    else:
        value = (value,) * axes
    return tuple(integer(name, number, least) for number in value)


def pair(name: str, value, least: int) -> tuple[int, int]:
    """Two ints of at least ``least``, from one int or a tuple of one or two."""
    first, second = sizes(name, value, least, 2)
    return first, second


def real(name: str, value, least: float = 0, above: bool = False, needed: str = "a float") -> float:
    """The value as a finite float of at least ``least``, or ``above`` it; ``needed`` says what the argument may be."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: {needed} is needed, not {type(value).__name__}")
    number = float(value)
    if not least <= number < math.inf or (above and number == least):
        raise ValueError(f"{name}={value!r}: must be finite and {'above' if above else 'at least'} {least}")
    return number


def flag(name: str, value) -> bool:
    """The value, which must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: True or False is needed, not {type(value).__name__}")
    return value


def out_dtype(dtype: torch.dtype | None, x_dtype: torch.dtype) -> torch.dtype | None:
    """The dtype, which must be None, x's dtype, or fp32 where x is not fp64."""
    allowed = (x_dtype,) if x_dtype in (torch.float32, torch.float64) else (x_dtype, torch.float32)
    if dtype is not None and dtype not in allowed:
        raise ValueError(f"out_dtype={dtype}: allowed for x of {x_dtype} are {', '.join(map(str, allowed))} and None")
    return dtype


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast casts to on this type of device; None where autocast is off."""
    try:
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    except RuntimeError:  # a device without autocast, such as "meta"
        return None


def without_autocast(t: Tensor) -> AbstractContextManager:
    """A context in which autocast is off for tensors on the device of ``t``, which may have none, as ``meta`` has."""
    device = t.device.type
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device, enabled=False)


def late_mode(detach) -> MutableMapping | None:
    """The mapping of the late explanation mode; None where ``detach`` is a bool."""
    if isinstance(detach, bool):
        return None
    if not isinstance(detach, MutableMapping) or "fixed_weights" not in detach:
        raise TypeError(f"detach={detach!r}: a bool, or a mutable mapping with the key 'fixed_weights' is needed")
    return detach
