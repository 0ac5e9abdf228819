"""``python -m bcos_kernels doctor``: what is built, which backend serves which calls, and why the others do not."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__, norm
from ..core import dispatch, tuned
from ..core.op import Op
from ..norm import NORM
from ..text import aligned
from ..transform import TRANSFORM, Call
from ..transform.call import of_shapes

__all__ = ["configure", "main"]

FAILED = Path(__file__).parents[1] / "_C.failed.txt"
"""The file in which setup.py leaves the reason why a build failed."""
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_LINEAR = of_shapes((8, 64), (64, 64))
_CONV = of_shapes((8, 64, 14, 14), (64, 64, 3, 3), padding=(1, 1))

CASES: dict[str, Call | norm.Call] = {
    "linear": _LINEAR,
    "linear, b=1.5": replace(_LINEAR, spec=replace(_LINEAR.spec, b=1.5)),
    "conv2d": _CONV,
    "conv2d, depthwise": replace(_CONV, spec=replace(_CONV.spec, groups=64), weight_shape=(64, 1, 3, 3)),
    "conv2d, 4 groups": replace(_CONV, spec=replace(_CONV.spec, groups=4), weight_shape=(64, 16, 3, 3)),
    "conv2d, max_out=2": replace(_CONV, spec=replace(_CONV.spec, max_out=2), weight_shape=(128, 64, 3, 3)),
    "conv2d, learned b": replace(_CONV, spec=replace(_CONV.spec, b=None)),
    "conv2d, no unit norm": replace(_CONV, spec=replace(_CONV.spec, unit=False)),
    "conv2d, reflect": replace(_CONV, zero_padded=False),
    **{f"norm, over={over!r}": norm.Call(norm.Spec(over), "cpu", (8, 64, 14, 14), weight=True) for over in norm.OVER},
}
"""One call of each kind. A table for each kind of device of this machine shows them in every dtype."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Shows what is built, which backend serves which calls, and why the others do not."


def main(options: argparse.Namespace) -> int:
    """Prints the report and returns 0."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parts = [
        _versions(),
        _build(),
        *(_gpu_kernels(name, devices[-1]) for name, backend in TRANSFORM.backends.items() if backend.interchangeable),
        _tuned(),
        _environment(),
    ]
    parts += [_table(device) for device in devices]
    parts.append(_reasons(devices))
    print("\n\n".join(parts))
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> str:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = torch.backends.cpu.get_cpu_capability()
    rows = {
        "bcos_kernels": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "triton": _version("triton"),
        "bcos": _version("bcos"),
        "cpu": f"{platform.machine()} {cpu}, {torch.get_num_threads()} threads",
        "gpu": ", ".join(gpus) or "none",
    }
    return aligned(rows.items())


def _build() -> str:
    """The compiled extension: whether it is there, and whether it was built for the torch that runs."""
    try:
        from .. import _C
    except ImportError as error:
        reason = f"its build failed: {FAILED.read_text(encoding='utf-8').strip()}" if FAILED.exists() else error
        return f"compiled extension: not there ({reason}); slower backends serve its calls"
    info = _C.build_info()
    facts: dict[str, object] = {**info}
    if info["cuda"]:
        cuda = _C.cuda.build_info()
        compiled = " ".join(f"sm_{arch // 10}" for arch in cuda["architectures"])
        facts["cuda"] = f"{cuda['runtime'] // 1000}.{cuda['runtime'] % 1000 // 10} for {compiled}"
    told = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "torch")
    built_for = info["torch"]
    # the part behind "+" names the origin of the wheel, not its interface
    if built_for.partition("+")[0] != torch.__version__.partition("+")[0]:
        return f"compiled extension: made for torch {built_for}, not {torch.__version__}: rebuild it ({told})"
    return f"compiled extension: made for torch {built_for}, running {torch.__version__} ({told})"


def _gpu_kernels(name: str, device: str) -> str:
    """Where the kernels of a GPU backend run, or why they do not."""
    reasons = TRANSFORM.backends[name].why_not(_call(_CONV, device, torch.float32))
    if reasons:
        return f"{name} kernels: not used here: {'; '.join(reasons)}"
    where = "on the GPU" if device == "cuda" else "in the interpreter (TRITON_INTERPRET=1), if asked for by name"
    return f"{name} kernels: {where}"


def _tuned() -> str:
    try:
        count = len(tuned.read().get(tuned.device(), {}))
    except ValueError as error:
        return f"tuned choices: none, so that GPU kernels are chosen by prediction: {error}"
    return f"tuned choices: {count} for {tuned.device()} in {tuned.PATH}"


def _environment() -> str:
    value = dispatch.FORCED
    if value is None:
        return "environment: BCOS_KERNELS_BACKEND is not set: the fastest backend that serves a call is used"
    known = "" if value in TRANSFORM.backends else f", which is unknown: allowed are {', '.join(TRANSFORM.backends)}"
    return f"environment: BCOS_KERNELS_BACKEND={value}{known}"


def _call(case: Any, device: str, dtype: torch.dtype) -> Any:
    """The case on a device, with all tensors in one dtype."""
    changes = {name: dtype for name in ("dtype", "weight_dtype") if hasattr(case, name)}
    return replace(case, device=device, spec=replace(case.spec, out_dtype=dtype), **changes)


def _op(call: Call | norm.Call) -> Op:
    return NORM if isinstance(call, norm.Call) else TRANSFORM


def _table(device: str) -> str:
    """Which backend serves each kind of call on one kind of device."""
    rows = [(f"on {device}", *(str(d)[6:] for d in DTYPES))]
    for name, case in CASES.items():
        rows.append((name, *(_served(_call(case, device, dtype)) for dtype in DTYPES)))
    return aligned(rows)


def _served(call: Call | norm.Call) -> str:
    try:
        return _op(call).choose(call)
    except ValueError:
        return "none"


def _reasons(devices: list[str]) -> str:
    """Every distinct reason of each backend, over all calls of the tables."""
    found: dict[str, dict[str, None]] = {name: {} for name in TRANSFORM.backends}
    calls = [_call(case, device, dtype) for device in devices for case in CASES.values() for dtype in DTYPES]
    for call in calls:
        for name, reasons in _op(call).reasons(call).items():
            found[name].update(dict.fromkeys(reasons))
    lines = ["why not:"]
    for name, distinct in found.items():
        lines += [f"  {name}: {reason}" for reason in distinct] or [f"  {name}: serves every call above"]
    return "\n".join(lines)
