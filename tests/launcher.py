"""Triton's own launcher where there is no GPU: it compiles, loads and starts kernels for Hopper, and nothing runs.

``tests/driver`` stands in for the GPU's driver and refuses what a GPU would refuse. Tensors of the meta device get an
address and the bytes of their storage there; so they may be larger than any memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

import torch
from emulated import gpu_driver
from torch import Tensor
from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.tools.tensor_descriptor import TensorDescriptor

from bcos_kernels.gpu.launch import Launch, launch

__all__ = ["Driver", "Memory"]

FIRST_ADDRESS, ALIGNED = 1 << 44, 512  # as torch aligns what it allocates


class Posed(Tensor):
    """A tensor without memory that tells an address."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    address: int

    def data_ptr(self) -> int:
        return self.address


class Driver(nvidia.CudaDriver):
    """Triton's driver of one GPU of sm_90, with the stand-in for the library below it."""

    def __init__(self) -> None:
        library = gpu_driver(Path(nvidia.__file__).parent / "include")
        # of two libraries of the same name, a process finds the one that it has loaded
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.library.mock_allocate.argtypes = (ctypes.c_uint64, ctypes.c_uint64)
        self.library.mock_launches.restype = ctypes.c_int64
        usual, knobs.nvidia.libcuda_path = knobs.nvidia.libcuda_path, str(library.parent)
        try:
            super().__init__()
        finally:
            knobs.nvidia.libcuda_path = usual
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device: (9, 0)

    def start(self, found: Iterable[Launch]) -> None:
        """Starts each launch twice: as Triton does at first, and as ``launch`` starts a kernel that it has kept.

        Raises what Triton raises, and AssertionError where the driver was not told to start the kernel, or another
        time than once.
        """
        found, memory = list(found), Memory(self.library)
        for kernel, grid, arguments, constants, warps, stages in found:
            posed = tuple(map(memory.posed, arguments))
            for _ in range(2):
                before = self.library.mock_launches()
                launch(kernel, grid, *posed, warps=warps, stages=stages, **constants)
                started = self.library.mock_launches() - before
                assert started == 1, f"{kernel.fn.__name__} with grid {grid} was started {started} times"


class Memory:
    """The memory of the stand-in, for the tensors of several launches, which must outlive it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.next = library, FIRST_ADDRESS
        self.addresses: dict[int, int] = {}
        """Storage -> its address."""
        library.mock_free_all()

    def posed(self, argument):
        """The argument of a launch, with an address where it is a tensor or the descriptor of one."""
        if isinstance(argument, TensorDescriptor):
            base = self.posed(argument.base)
            return TensorDescriptor(base, argument.shape, argument.strides, argument.block_shape)
        if not isinstance(argument, Tensor):
            return argument
        storage = argument.untyped_storage()
        if storage._cdata not in self.addresses:
            self.addresses[storage._cdata] = self.next
            self.library.mock_allocate(self.next, storage.nbytes())
            self.next += (storage.nbytes() // ALIGNED + 2) * ALIGNED  # with a gap behind it
        posed = argument.as_subclass(Posed)
        offset = argument.storage_offset() * argument.dtype.itemsize
        posed.address = self.addresses[storage._cdata] + offset if argument.numel() else 0
        return posed
