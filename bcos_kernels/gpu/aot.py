"""Compiles Triton kernels ahead of time, for a GPU that may be absent, and tells which resources they need.

Triton specialises and compiles them as it does at a call; only its driver is replaced. It does not work with
TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import Launch

__all__ = [
    "ARCHITECTURES", "Compiled", "Constant", "Descriptor", "Driver", "Pointer", "Resources", "Specialisation", "active",
    "compile_here", "compiled", "specialise",
]  # fmt: skip


class Architecture(NamedTuple):
    """A GPU as Triton names it, and the most resources that one program may use."""

    target: GPUTarget
    shared: int
    """Bytes of shared memory."""
    registers: int
    """Registers of a thread; on NVIDIA GPUs the threads of a program also share 65536."""


ARCHITECTURES = {
    "sm_80": Architecture(GPUTarget("cuda", 80, 32), 163 << 10, 255),
    "sm_86": Architecture(GPUTarget("cuda", 86, 32), 99 << 10, 255),
    "sm_90": Architecture(GPUTarget("cuda", 90, 32), 227 << 10, 255),
    "sm_100": Architecture(GPUTarget("cuda", 100, 32), 227 << 10, 255),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 64 << 10, 512),
}
TENSOR_MEMORY = 512  # columns of tensor memory on sm_100
REGISTER_FILE = 65536
TRADED = 16  # bytes of a thread that NVIDIA's compiler may spill although registers are free, so that more warps run


class Pointer(NamedTuple):
    """The properties of a tensor argument for which Triton specialises; all are aligned, as torch allocates them."""

    dtype: torch.dtype
    large: bool
    """Whether it has 2 GiB or more, beyond the reach of AMD's buffer instructions."""


class Constant(NamedTuple):
    """A float that is a constant of the kernel; one value stands for all."""

    value: float = 0.5


class Descriptor(NamedTuple):
    """The properties of a tensor descriptor for which Triton specialises."""

    dtype: torch.dtype
    block: tuple[int, ...]
    """The sizes of a tile."""


class Specialisation(NamedTuple):
    """All that a compiled kernel depends on; equal ones are compiled once."""

    arch: str
    module: str
    kernel: str
    arguments: tuple[Pointer | Descriptor | Constant | int | float | None, ...]
    constants: tuple[tuple[str, object], ...]
    warps: int
    stages: int


class Resources(NamedTuple):
    """The resources that a program uses."""

    registers: int
    """Registers of a thread."""
    spills: int
    """Bytes of a thread's values that are kept in memory for lack of registers."""
    shared: int
    """Bytes of shared memory."""
    tensor_memory: int
    """Columns of sm_100's tensor memory."""


class Compiled(NamedTuple):
    """A kernel's intermediate representations, its assembly (PTX or AMD's), its binary and its resources."""

    of: Specialisation
    ttir: str
    ttgir: str
    assembly: str
    binary: bytes
    resources: Resources

    def excesses(self) -> list[str]:
        """Each resource that exceeds its limit, values spilled for lack of registers included; empty if none does."""
        limits, taken = ARCHITECTURES[self.of.arch], self.resources
        most = limits.registers
        if limits.target.backend == "cuda":
            most = min(most, REGISTER_FILE // (32 * self.of.warps))
        spills = TRADED if taken.registers < most and limits.target.backend == "cuda" else 0
        allowed = {"spills": spills, "registers": most, "shared": limits.shared, "tensor_memory": TENSOR_MEMORY}
        return [
            f"{name} {getattr(taken, name)} > {most}" for name, most in allowed.items() if getattr(taken, name) > most
        ]


def specialise(started: Launch, arch: str) -> Specialisation:
    """The specialisation that Triton would compile for a launch on ``arch``."""
    arguments = tuple(map(_argument, started.arguments))
    constants = tuple(sorted(started.constants.items()))
    kernel = started.kernel.fn
    return Specialisation(
        arch, kernel.__module__, kernel.__name__, arguments, constants, started.warps, started.stages
    )  # fmt: skip


def _argument(value):
    if isinstance(value, Tensor):
        return Pointer(value.dtype, value.numel() * value.dtype.itemsize >= 1 << 31)
    if isinstance(value, TensorDescriptor):
        return Descriptor(value.base.dtype, tuple(value.block_shape))
    if isinstance(value, tl.constexpr):
        return Constant()
    if isinstance(value, float):
        return 0.5
    if isinstance(value, int):  # one value for each kind that Triton specialises for: 1, multiples of 16, and the width
        return value if value == 1 else (1 << 40 if value >= 1 << 31 else 0) + (16 if value % 16 == 0 else 7)
    return value


def _value(argument):
    if isinstance(argument, Pointer):
        count = (1 << 31) // argument.dtype.itemsize if argument.large else 1
        return torch.empty(count, dtype=argument.dtype, device="meta")
    if isinstance(argument, Constant):
        return tl.constexpr(argument.value)
    if isinstance(argument, Descriptor):
        return TensorDescriptor.from_tensor(
            torch.empty(argument.block, dtype=argument.dtype, device="meta"), list(argument.block)
        )
    return argument


class Driver:
    """Replaces the driver of a GPU, with all that Triton asks of it. It loads nothing and starts nothing."""

    def __init__(self, arch: str) -> None:
        self.arch, self.utils = arch, self

    def get_current_target(self) -> GPUTarget:
        return ARCHITECTURES[self.arch].target

    def get_current_device(self) -> str:
        return self.arch  # Triton's cache of compiled kernels has this as a key

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_device_properties(self, device: str) -> dict[str, int]:
        return {"max_shared_mem": ARCHITECTURES[self.arch].shared}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: str) -> tuple:
        module, function, registers, spills, threads = name, kernel, 0, 0, 1024
        return module, function, registers, spills, threads

    def launcher_cls(self, source, metadata) -> Callable[..., None]:
        return partial(self.start, metadata)

    def start(self, metadata, *arguments) -> None:
        """Takes the place of a start of the kernel with this metadata; Triton hands ``arguments`` to its launcher."""


@contextmanager
def active(stand_in: Driver) -> Iterator[None]:
    """A context in which Triton takes ``stand_in`` for the driver of the GPU."""
    usual = driver._active
    driver.set_active(stand_in)
    try:
        yield
    finally:
        driver._active = usual


def compile_here(what: Specialisation):
    """Compiles one kernel for the current device, where its launches find it. Raises Triton's own error."""
    kernel = getattr(import_module(what.module), what.kernel)
    return kernel.warmup(
        *map(_value, what.arguments), grid=(1,), **dict(what.constants),
        num_warps=what.warps, num_stages=what.stages, enable_fp_fusion=True,
    )  # fmt: skip


def compiled(what: Specialisation) -> Compiled:
    """Compiles one kernel. Raises Triton's own error if that fails."""
    with active(Driver(what.arch)):
        binary = compile_here(what)
    asm, nvidia = binary.asm, ARCHITECTURES[what.arch].target.backend == "cuda"
    assembly, code = (asm["ptx"], asm["cubin"]) if nvidia else (asm["amdgcn"], asm["hsaco"])
    registers, spills = _of_cubin(code) if nvidia else _of_amdgcn(assembly)
    taken = Resources(registers, spills, binary.metadata.shared, getattr(binary.metadata, "tmem_size", None) or 0)
    return Compiled(what, asm["ttir"], asm["ttgir"], assembly, code, taken)


def _of_cubin(code: bytes) -> tuple[int, int]:
    """(registers, bytes of stack and local memory), as cuobjdump prints them."""
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _tool("cuobjdump", "-res-usage", code)))
    return int(used["REG"]), int(used["STACK"]) + int(used["LOCAL"])


def _of_amdgcn(assembly: str) -> tuple[int, int]:
    """(vector registers, bytes of spilled values) from the kernel's metadata.

    Scalar registers are spilled to lanes of vector registers, and to the scratch memory if they do not fit there.
    """

    def entry(name: str) -> int:
        found = re.search(rf"^ *-? *\.{name}: *(\d+)", assembly, re.MULTILINE)
        assert found is not None, f"the assembly does not contain its {name}"
        return int(found[1])

    return entry("vgpr_count"), max(entry("private_segment_fixed_size"), 4 * entry("vgpr_spill_count"))


def _tool(name: str, option: str, code: bytes) -> str:
    """The output of one of the tools in Triton's package for a cubin."""
    handle, path = tempfile.mkstemp(suffix=".cubin")
    try:
        with open(handle, "wb") as file:
            file.write(code)
        command = [getattr(knobs.nvidia, name).path, option, path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        os.remove(path)


def disassembled(code: bytes) -> str:
    """The instructions of a cubin."""
    return _tool("nvdisasm", "-c", code)
