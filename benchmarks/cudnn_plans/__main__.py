"""``python -m benchmarks.cudnn_plans``: the plans of the candidate graph, as cuDNN builds them for described GPUs.

No GPU is needed and nothing is run: every step of every dense layer of ResNet-50, ViT-S and ConvNeXt-T, and every
option on some shapes, is handed to the cuDNN of NVIDIA's wheels, through the code that a GPU would use, and stored and
restored once. It needs g++ and 1.6 GB in ``build/``, into which pip installs the wheels. It exits with 1 if a
step of a model is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from bcos_kernels.cli.bench.devices import machine
from bcos_kernels.cli.bench.stored import header, store
from bcos_kernels.cli.terminal import at_least
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.text import aligned
from bcos_kernels.transform import TRANSFORM, Call
from bcos_kernels.transform.call import of_shapes

from ..command import Parser, heading
from ..triton_aot import call_of, selected

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cudnn_plans"
WHEELS = ("nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime")
MODELS = ("resnet50", "vit_s", "convnext_t")
SHAPES = (
    {"x_shape": (256, 64, 56, 56), "weight_shape": (64, 64, 3, 3), "padding": (1, 1)},
    {"x_shape": (50, 30, 9, 9), "weight_shape": (65, 30, 3, 3), "dilation": (2, 2)},
    {"x_shape": (12544, 384), "weight_shape": (1536, 384)},
)
OPTIONS = (
    {"dtype": torch.float16}, {"dtype": torch.float32, "tf32": True}, {"b": 1.5}, {"b": 2.5, "cos_eps": 0.0},
    {"b": 1.0}, {"bias": True}, {"unit": False}, {"b": 1.5, "out_dtype": torch.float32},
)  # fmt: skip
"""Every option beside the models' own is tried on these shapes; the channels of one fill no 16 bytes."""
TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 9}
"""cuDNN's numbers of dtypes."""
POWERS = {1: 0, 2: 1, 0: 2}
"""``Call.power`` as ``Power`` of ``csrc/transform/formula.h`` counts."""

_COMMON = {
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
    "smCountOrigin": 0, "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "oversizedSharedMemoryPerBlock": 0,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "cudaDeviceId": 0,
    "driverVer": 13000,
}  # fmt: skip
GPUS = {
    "sm_80": {
        "deviceName": "NVIDIA A100-SXM4-80GB", "deviceVer": 800, "multiProcessorCount": 108,
        "maxSharedMemoryPerBlockOptin": 166912, "totalGlobalMem": 85 * 10**9, "smClockRateKHz": 1410000,
        "memClockRateKHz": 1593000, "memoryBusWidth": 5120, "l2CacheSize": 40 << 20,
    },
    "sm_90": {
        "deviceName": "NVIDIA H100 80GB HBM3", "deviceVer": 900, "multiProcessorCount": 132,
        "maxSharedMemoryPerBlockOptin": 232448, "totalGlobalMem": 85 * 10**9, "smClockRateKHz": 1980000,
        "memClockRateKHz": 2619000, "memoryBusWidth": 5120, "l2CacheSize": 50 << 20,
    },
    "sm_100": {
        "deviceName": "NVIDIA B200", "deviceVer": 1000, "multiProcessorCount": 148,
        "maxSharedMemoryPerBlockOptin": 232448, "totalGlobalMem": 192 * 10**9, "smClockRateKHz": 1965000,
        "memClockRateKHz": 3996000, "memoryBusWidth": 8192, "l2CacheSize": 126 << 20,
    },
}  # fmt: skip
"""Architecture -> the data sheet of a GPU, in the words of cuDNN's device descriptions."""


def line_of(call: Call, direction: str) -> str:
    """The step of a call as ``plans.cpp`` reads it."""
    numbers = (
        DIRECTIONS.index(direction), call.batch, call.channels, call.filters, *call.in_size, *call.out_size,
        *call.kernel, *call.stride, *call.padding, *call.dilation, TYPES[call.dtype], TYPES[call.out_dtype],
        int(call.raw_weights and direction != "training"), int(call.bias and direction == "forward"),
        POWERS[call.power], call.b_minus_1, call.cos_eps if call.power == 0 else 0,
    )  # fmt: skip
    return " ".join(map(str, numbers))


def steps(pattern: str, arch: str) -> dict[str, list[tuple[str, str]]]:
    """Each distinct step that a graph serves, as a line -> the models and the directions that it belongs to."""
    graph = next(c for c in TRANSFORM.candidates if c.name == "graph")
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    calls = [(layer.model, call_of(layer, arch)) for layer in selected(pattern) if layer.model in MODELS]
    if not pattern:
        calls += [("options", of_shapes(**shape, **options, arch=arch)) for shape in SHAPES for options in OPTIONS]
    for model, call in calls:
        for direction in DIRECTIONS:
            if graph.can_serve(call, direction):
                found[line_of(call, direction)].append((model, direction))
    return found


# ------------------------------------------------------------------------------------------------ what is needed


def execute(*command: object, **options) -> None:
    subprocess.run(list(map(str, command)), check=True, **options)


def install() -> Path:
    """The folder of NVIDIA's libraries, into which the wheels are installed where they are missing."""
    site = BUILD / "wheels"
    if not (site / "nvidia" / "cudnn").is_dir():
        print(f"installing {', '.join(WHEELS)} into {site.relative_to(ROOT)}", flush=True)
        execute(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, *WHEELS)
    return site / "nvidia"


def compiled() -> tuple[Path, Path]:
    """The program that builds plans, and the folder of what stands in for a GPU's driver."""
    driver = BUILD / "driver"
    driver.mkdir(parents=True, exist_ok=True)
    here, csrc = Path(__file__).parent, ROOT / "csrc"
    execute("gcc", "-shared", "-fPIC", "-w", here / "no_gpu.c", "-o", driver / "libcuda.so.1")
    sources = (here / "plans.cpp", *(csrc / "common/cuda/cudnn").glob("*.cpp"), csrc / "transform/cuda/graphs.cpp")
    program = BUILD / "plans"
    execute("g++", "-std=c++17", "-O1", "-I", csrc, *sources, "-ldl", "-pthread", "-o", program)
    return program, driver


# ------------------------------------------------------------------------------------------------ plans


def answers(program: Path, environment: dict[str, str], description: Path, lines: list[str]) -> tuple[str, list[str]]:
    """cuDNN's version, and an answer for each line."""
    done = subprocess.run(
        [program, description], input="\n".join(lines) + "\n", env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{program} failed for {description.stem}: {done.stderr.strip()}")
    version, *found = done.stdout.splitlines()
    return version, found


def table(arch: str, found: dict[str, list[tuple[str, str]]], answered: dict[str, str]) -> list[tuple[str, ...]]:
    """A row for each model and direction."""
    rows = []
    for model in (*MODELS, "options"):
        for direction in DIRECTIONS:
            told = [answered[line] for line, uses in found.items() if (model, direction) in uses]
            built = [text.split() for text in told if text.startswith("built ")]
            if told:
                seconds = [float(cells[1]) for cells in built]
                workspaces = sum(int(cells[2]) > 0 for cells in built)
                mean = f"{sum(seconds) / len(seconds):.1f}" if built else "–"
                rows.append((arch, model, direction, f"{len(built)} of {len(told)}", mean, str(workspaces)))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Prints the table and every refusal; returns 1 if a step of a model is among them."""
    parser = Parser(__doc__)
    allowed = f"of {', '.join(GPUS)} (default all)"
    parser.add_argument("--arch", nargs="+", default=list(GPUS), choices=list(GPUS), metavar="ARCH", help=allowed)
    parser.add_argument("--layers", default="", metavar="REGEX", help="those whose name matches (default all)")
    parser.add_argument("--workers", type=at_least(1), metavar="N", default=2, help="processes at a time (default 2)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="store the answers as JSON, too")
    chosen = parser.parsed(argv)
    steps_of = {arch: steps(chosen.layers, arch) for arch in chosen.arch}
    if not all(steps_of.values()):
        parser.error(f"--layers {chosen.layers!r} matches no layer of {', '.join(MODELS)} that a graph serves")
    settings = {"workers": chosen.workers, "gpus": {arch: _COMMON | GPUS[arch] for arch in chosen.arch}}
    result = header(chosen.command, machine(), settings) | {"cudnn": "", "plans": []}
    nvidia = install()
    program, driver = compiled()
    libraries = (driver, nvidia / "cudnn" / "lib", nvidia / "cu13" / "lib")
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    rows = [("GPU", "model", "direction", "built", "s each", "with workspace")]
    refusals: dict[str, bool] = {}  # what was refused -> whether a model has it
    start = time.monotonic()
    for arch, found in steps_of.items():
        lines = list(found)
        description = BUILD / f"{arch}.json"
        description.write_text(json.dumps(_COMMON | GPUS[arch]), encoding="utf-8")
        ask = partial(answers, program, environment, description)
        shares = [lines[i :: chosen.workers] for i in range(chosen.workers)]
        with ThreadPoolExecutor(chosen.workers) as pool:
            parts = list(pool.map(ask, shares))
        told = [text for _, texts in parts for text in texts]
        answered = dict(zip((line for share in shares for line in share), told, strict=True))
        rows += table(arch, found, answered)
        result["cudnn"] = parts[0][0].removeprefix("cudnn ")
        for line, text in answered.items():
            of = [f"{model} {direction}" for model, direction in found[line]]
            result["plans"].append({"arch": arch, "step": line, "of": of, "answer": text})
        refusals |= {
            f"{arch}, {line}: {text}": any(model in MODELS for model, _ in found[line])
            for line, text in answered.items() if not text.startswith("built ")
        }  # fmt: skip
    if chosen.out is not None:
        store(result | {"complete": not chosen.layers}, chosen.out)
    print(f"{heading(result)} cudnn {result['cudnn']}; {time.monotonic() - start:.0f} s\n")
    print(aligned(rows))
    print("\n".join(["", *refusals]) if refusals else "\nNothing was refused.")
    return int(any(refusals.values()))


if __name__ == "__main__":
    sys.exit(main())
