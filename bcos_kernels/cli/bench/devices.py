"""The device that is measured: its clock, its memory, its rates and its description. All that only CUDA has is here."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F

from ...core import _torch
from ..measure import uncollected, wall_clock

__all__ = ["Cpu", "DeviceLost", "Gpu", "machine", "opened"]


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


class DeviceLost(RuntimeError):
    """The device no longer responds; nothing else can be measured on it."""


class Cpu:
    """The CPU, and the interface of every device."""

    name = "cpu"
    copied, product = 1 << 27, 1024

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints two lines for every peak

    def describe(self) -> dict:
        found = machine()
        return found | {"device": found["cpu"] or "cpu"}

    def time(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        return wall_clock(call)

    def peak(self, call: Callable[[], object]) -> int:
        """The most bytes of PyTorch's allocator that ``call`` holds at once, beside those held before it."""
        with torch.autograd.profiler.profile(profile_memory=True) as profile, uncollected():
            call()
        events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        return max(accumulate((event.nbytes() for event in events), initial=0))

    def is_alive(self) -> bool:
        return True

    def rates(self, dtype: torch.dtype) -> dict[str, float]:
        """The bytes/s (read and written) that a copy reaches here, and the FLOP/s of products; each the best of ten.

        FLOP/s are those of a matrix product or of a convolution with as many FLOPs, whichever is faster.
        """
        side, channels = self.product, self.product // 8
        source = torch.empty(self.copied, dtype=torch.uint8, device=self.name).random_()
        target = torch.empty_like(source)
        a, b = (torch.randn(side, side, device=self.name, dtype=dtype) for _ in range(2))
        images = torch.randn(side**3 // (9 * channels**2 * 28**2) or 1, channels, 28, 28, device=self.name, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, device=self.name, dtype=dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        calls = (lambda: target.copy_(source), lambda: a @ b, lambda: F.conv2d(images, weight, padding=1))
        seconds = []
        for call in calls:
            call()
            seconds.append(min(self.time(call) for _ in range(10)))
        flops = 2 * side**3 / seconds[1], 2 * 9 * channels * images.numel() / seconds[2]
        return {"bytes/s": 2 * self.copied / seconds[0], "FLOP/s": max(flops)}


class Gpu(Cpu):
    """The current CUDA device."""

    name = "cuda"
    copied, product = 1 << 31, 8192
    AHEAD = 2_000_000  # cycles, about a millisecond: longer than the host needs to queue the launches of a call

    def __init__(self) -> None:
        torch.backends.cudnn.benchmark = True
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
        """Seconds of one call on the GPU, with its inputs outside of the L2 cache and its launches already queued."""
        self.other.sum()  # read only, so that no dirty line of the cache has to be written back
        _torch.spin(self.AHEAD)
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3

    def peak(self, call: Callable[[], object]) -> int:
        # autograd's thread of this device may still hold tensors of the last backward, until it begins another one
        torch.zeros(1, device="cuda", requires_grad=True).sum().backward()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with uncollected():
            call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def is_alive(self) -> bool:
        try:
            torch.cuda.synchronize()
            return float(torch.ones(1, device="cuda")) == 1.0
        except RuntimeError:
            return False


def opened(name: str) -> Cpu:
    """Makes ``cpu``, ``cuda`` or ``cuda:<index>`` the current device; raises ValueError where there is none."""
    kind, _, index = name.partition(":")
    if name == "cpu":
        return Cpu()
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise ValueError(f"--device {name}: allowed are cpu, cuda and cuda:<index>")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no GPU here, torch.cuda.is_available() is False")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    torch.cuda.set_device(int(index or torch.cuda.current_device()))
    return Gpu()
