"""Triton kernels compiled ahead of time, for a GPU that need not be there, and what they take of it.

Triton itself specialises and compiles, as at a call; only the driver is stood in for. Not under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from .launch import Launch

__all__ = ["ARCHITECTURES", "Compiled", "Pointer", "Resources", "Specialisation", "compiled", "specialise"]


class Architecture(NamedTuple):
    """A GPU as Triton names it, and what one program may take of it."""

    target: GPUTarget
    shared: int
    """Bytes of shared memory."""
    registers: int
    """Of a thread; NVIDIA's also share 65536 among the threads of a program."""


ARCHITECTURES = {
    "sm_80": Architecture(GPUTarget("cuda", 80, 32), 163 << 10, 255),
    "sm_90": Architecture(GPUTarget("cuda", 90, 32), 227 << 10, 255),
    "sm_100": Architecture(GPUTarget("cuda", 100, 32), 227 << 10, 255),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 64 << 10, 512),
}
TENSOR_MEMORY = 512  # columns of sm_100
REGISTER_FILE = 65536
TRADED = 16  # bytes a thread that NVIDIA's compiler may keep in memory with registers left: fewer let more warps run


class Pointer(NamedTuple):
    """A tensor argument as far as it is specialised on: torch's allocations are aligned to more than 16 bytes."""

    dtype: torch.dtype
    large: bool
    """2 GiB or more, beyond what AMD's buffer instructions reach."""


class Specialisation(NamedTuple):
    """Everything that a compiled kernel depends on; equal ones are compiled once."""

    arch: str
    module: str
    kernel: str
    arguments: tuple[Pointer | int | float | None, ...]
    constants: tuple[tuple[str, object], ...]
    warps: int
    stages: int


class Resources(NamedTuple):
    """What a program takes."""

    registers: int
    """Of a thread."""
    spills: int
    """Bytes of a thread's registers that are kept in memory."""
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
        """What does not fit the GPU or lies in memory for want of registers; empty for a kernel that is in order."""
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
    """What Triton would compile for a launch on ``arch``."""
    arguments = tuple(map(_argument, started.arguments))
    constants = tuple(sorted(started.constants.items()))
    kernel = started.kernel.fn
    return Specialisation(
        arch, kernel.__module__, kernel.__name__, arguments, constants, started.warps, started.stages
    )  # fmt: skip


def _argument(value):
    if isinstance(value, Tensor):
        return Pointer(value.dtype, value.numel() * value.dtype.itemsize >= 1 << 31)
    if isinstance(value, float):
        return 0.5
    if isinstance(value, int):  # one for each kind that Triton tells apart: 1, a multiple of 16, and the width
        return value if value == 1 else (1 << 40 if value >= 1 << 31 else 0) + (16 if value % 16 == 0 else 7)
    return value


def _value(argument):
    if isinstance(argument, Pointer):
        count = (1 << 31) // argument.dtype.itemsize if argument.large else 1
        return torch.empty(count, dtype=argument.dtype, device="meta")
    return argument


class _Driver:
    """In place of the driver of a GPU: enough to compile for it."""

    def __init__(self, arch: str) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return ARCHITECTURES[self.arch].target

    def get_current_device(self) -> str:
        return self.arch  # Triton's key of what it has compiled

    def get_current_stream(self, device: str) -> int:
        return 0


def compiled(what: Specialisation) -> Compiled:
    """Compiles one kernel. Raises what Triton raises where it does not compile."""
    kernel = getattr(import_module(what.module), what.kernel)
    usual = driver._active
    driver.set_active(_Driver(what.arch))
    try:
        binary = kernel.warmup(
            *map(_value, what.arguments), grid=(1,), **dict(what.constants),
            num_warps=what.warps, num_stages=what.stages, enable_fp_fusion=True,
        )  # fmt: skip
    finally:
        driver._active = usual
    asm, nvidia = binary.asm, ARCHITECTURES[what.arch].target.backend == "cuda"
    assembly, code = (asm["ptx"], asm["cubin"]) if nvidia else (asm["amdgcn"], asm["hsaco"])
    registers, spills = _of_cubin(code) if nvidia else _of_amdgcn(assembly)
    taken = Resources(registers, spills, binary.metadata.shared, getattr(binary.metadata, "tmem_size", None) or 0)
    return Compiled(what, asm["ttir"], asm["ttgir"], assembly, code, taken)


def _of_cubin(code: bytes) -> tuple[int, int]:
    """(registers, bytes of the stack and of local memory) by cuobjdump."""
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _tool("cuobjdump", "-res-usage", code)))
    return int(used["REG"]), int(used["STACK"]) + int(used["LOCAL"])


def _of_amdgcn(assembly: str) -> tuple[int, int]:
    """(vector registers, bytes of scratch and of what spilled) by the kernel's metadata.

    Scalar registers spill to lanes of vector registers; what does not fit there is in the scratch.
    """

    def entry(name: str) -> int:
        found = re.search(rf"^ *-? *\.{name}: *(\d+)", assembly, re.MULTILINE)
        assert found is not None, f"the assembly does not tell its {name}"
        return int(found[1])

    return entry("vgpr_count"), max(entry("private_segment_fixed_size"), 4 * entry("vgpr_spill_count"))


def _tool(name: str, option: str, code: bytes) -> str:
    """What a tool of Triton's package prints about a cubin."""
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
