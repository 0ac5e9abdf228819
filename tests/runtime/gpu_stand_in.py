"""Makes torch's CUDA build compute on the CPU, in front of the stand-in for the CUDA runtime (``libcudart.cpp``).

A process imports this before anything else of a GPU. What torch compiles by Inductor, it traces and runs eagerly here,
because nothing runs the kernels that Inductor would write.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from importlib import import_module

import gpu_stand_in_operators as native
import torch

OF_MEMORY = (
    "_efficientzerotensor", "_pin_memory", "_reshape_alias", "alias", "as_strided", "empty.memory_format",
    "empty_strided", "is_pinned", "is_set_to", "record_stream", "resize_", "resize_as_", "set_",
    "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor", "unfold", "view",
    "view_as_complex", "view_as_real",
)  # fmt: skip
"""Operators that compute nothing: torch's own do as well here."""

OF_EVERY_DEVICE = (
    "_foreach_copy_", "convolution", "convolution_backward", "copy_", "fill_.Scalar", "fill_.Tensor", "zero_",
)  # fmt: skip
"""Operators that torch has for no device in particular, and that start kernels of the device all the same."""


def _registered(key: str) -> set[str]:
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name.removeprefix("aten::") for name in names if name.startswith("aten::")}


@contextlib.contextmanager
def _silent():
    """Torch warns of every operator that is registered a second time, on the file behind stderr."""
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _batch_norm(x, weight, bias, mean, var, training: bool, momentum: float, eps: float):
    hosts = (None if t is None else native.operand(t) for t in (x, weight, bias, mean, var))
    results = torch.ops.aten.native_batch_norm(*hosts, training, momentum, eps)
    reserve = torch.empty(0, dtype=torch.uint8, device=x.device)
    return *(native.on_gpu(t, x.get_device()) for t in results), reserve


def _batch_norm_backward(x, grad, weight, mean, var, save_mean, save_var, eps: float, reserve):
    given = grad, x, weight, mean, var, save_mean, save_var
    hosts = (None if t is None else native.operand(t) for t in given)
    results = torch.ops.aten.native_batch_norm_backward(*hosts, True, eps, [True] * 3)
    return tuple(native.on_gpu(t, x.get_device()) for t in results)


def _compiled_eagerly(compile_):
    def compiled(model=None, *, backend="inductor", mode=None, options=None, **others):
        return compile_(model, backend="aot_eager" if backend == "inductor" else backend, **others)

    return compiled


def install() -> None:
    torch.cuda.init()
    if "BCOS_TEST_IDLE" in os.environ:
        import_module("torch._meta_registrations")  # the shapes of results, of which nothing is computed
    somewhere = _registered("CPU") | _registered("CompositeExplicitAutograd")
    names = (_registered("CUDA") & somewhere) - set(OF_MEMORY) | set(OF_EVERY_DEVICE)
    with _silent(), warnings.catch_warnings():
        native.install(sorted(names))
        warnings.simplefilter("ignore")
        for name, function in {
            "cudnn_batch_norm": _batch_norm,
            "cudnn_batch_norm_backward": _batch_norm_backward,
        }.items():
            _ALONE.impl(name, function, "CUDA")
    torch.compile = _compiled_eagerly(torch.compile)
    for attention in "cudnn", "flash", "mem_efficient":  # which are CUDA's alone: the formula takes their place
        getattr(torch.backends.cuda, f"enable_{attention}_sdp")(False)


_ALONE = torch.library.Library("aten", "IMPL")
"""Holds those operators that have no twin of the same name on the CPU."""

install()
