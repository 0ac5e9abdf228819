"""The compiled extension, or why it is not used."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch

__all__ = ["load", "transform_spec"]


def load() -> tuple[ModuleType | None, str]:
    """``(extension, "")``, or None and why."""
    try:
        from .. import _C
    except ImportError as error:
        return None, f"the compiled extension bcos_kernels._C is not there ({error})"
    built_for = _C.build_info()["torch"]
    # the local label of a version tells where a build comes from, not which interface it has
    if built_for.partition("+")[0] != torch.__version__.partition("+")[0]:
        return None, f"bcos_kernels._C was built for torch {built_for}, running is {torch.__version__}: build it again"
    return _C, ""


def transform_spec(options: tuple, tensor_b: bool, out_dtype: torch.dtype):
    """The options of an operator's call, in the order of its schema, as the extension takes them."""
    try:
        return _transform_spec(options, tensor_b, out_dtype)
    except TypeError:  # through torch.library pairs come as lists, which have no hash
        hashable = tuple(tuple(o) if isinstance(o, list) else o for o in options)
        return _transform_spec(hashable, tensor_b, out_dtype)


@lru_cache(maxsize=4096)
def _transform_spec(options: tuple, tensor_b: bool, out_dtype: torch.dtype):
    from .. import _C

    *window, max_out, b, unit, inside, outside, cos_eps, exact_two = options
    stride, padding, dilation, groups = window or ((), (), (), 1)
    return _C.TransformSpec(
        stride=stride, padding=padding, dilation=dilation, groups=groups, max_out=max_out, b=None if tensor_b else b,
        unit=unit, norm_eps=(inside, outside), cos_eps=cos_eps, exact_two=exact_two, out_dtype=out_dtype,
    )  # fmt: skip
