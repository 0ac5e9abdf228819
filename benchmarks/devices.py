"""The device that is measured: its clock, its rates and what it is. Everything that only CUDA has stands here."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from .timing import wall_clock

__all__ = ["Cpu", "Gpu", "machine"]


def machine() -> dict:
    """The CPU, its cores, and the threads in use."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        cpu = found.group(1) if found else platform.processor()
    except OSError:
        cpu = platform.processor()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }


class Cpu:
    """The CPU in the place of a GPU: for looking at a benchmark where there is none."""

    name = "cpu"
    copied, product = 1 << 22, 256

    def describe(self) -> dict:
        return machine() | {"device": platform.processor() or platform.machine()}

    def time(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        return wall_clock(call)

    def peak(self, call: Callable[[], object]) -> int | None:
        """Bytes that ``call`` allocates at most, beside what is there; None where nobody counts."""
        call()
        return None

    def rates(self, dtype: torch.dtype) -> dict[str, float]:
        """Reachable bytes/s of a copy (read and written) and FLOP/s of a matrix product, measured here and now."""
        source = torch.empty(self.copied, dtype=torch.uint8, device=self.name).random_()
        target = torch.empty_like(source)
        a, b = (torch.randn(self.product, self.product, device=self.name, dtype=dtype) for _ in range(2))
        seconds = []
        for call in (lambda: target.copy_(source), lambda: a @ b):
            call()
            seconds.append(statistics.median(self.time(call) for _ in range(10)))
        return {"bytes/s": 2 * self.copied / seconds[0], "FLOP/s": 2 * self.product**3 / seconds[1]}


class Gpu(Cpu):
    """The current CUDA device."""

    name = "cuda"
    copied, product = 1 << 31, 8192
    AHEAD = 2_000_000  # cycles, about a millisecond: longer than the host takes to start what is timed

    def __init__(self) -> None:
        self.device = torch.cuda.get_device_properties()
        self.other = torch.zeros(self.device.L2_cache_size, dtype=torch.float32, device="cuda")  # four times the cache
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def describe(self) -> dict:
        d = self.device
        return machine() | {
            "device": d.name,
            "driver": self.driver(),
            "memory": d.total_memory,
            "l2": d.L2_cache_size,
            "multiprocessors": d.multi_processor_count,
            "compute_capability": f"{d.major}.{d.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def driver(self) -> str | None:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None
        return printed.split()[0] if printed.split() else None

    def time(self, call: Callable[[], object]) -> float:
        """Seconds of one call on the GPU, its inputs not in the L2 cache and its launches already waiting."""
        self.other.sum()  # read, not written: nothing is left to be written back
        torch.cuda._sleep(self.AHEAD)
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3

    def peak(self, call: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
