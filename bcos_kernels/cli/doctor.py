"""``python -m bcos_kernels doctor``: what is built, which backend serves which calls, and why the others do not."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import warnings
from dataclasses import replace
from typing import Any

import torch

from .. import __version__, dynamic_alignment, norm
from ..core import dispatch, env, extension, tuned
from ..core.op import Op
from ..dynamic_alignment import DYNAMIC_ALIGNMENT
from ..gpu import cuda, plans
from ..norm import NORM
from ..text import aligned, many, wrapped
from ..transform import TRANSFORM, Call
from ..transform.call import of_shapes

__all__ = ["configure", "main"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_LINEAR = of_shapes((8, 64), (64, 64))
_CONV = of_shapes((8, 64, 14, 14), (64, 64, 3, 3), padding=(1, 1))

CASES: dict[str, Call | norm.Call | dynamic_alignment.Call] = {
    "linear": _LINEAR,
    "linear, b=1.5": replace(_LINEAR, spec=replace(_LINEAR.spec, b=1.5)),
    "conv2d": _CONV,
    "conv2d, depthwise": replace(_CONV, spec=replace(_CONV.spec, groups=64), weight_shape=(64, 1, 3, 3)),
    "conv2d, 4 groups": replace(_CONV, spec=replace(_CONV.spec, groups=4), weight_shape=(64, 16, 3, 3)),
    "conv2d, max_out=2": replace(_CONV, spec=replace(_CONV.spec, max_out=2), weight_shape=(128, 64, 3, 3)),
    "conv2d, learned b": replace(_CONV, spec=replace(_CONV.spec, b=None)),
    "conv2d, no unit norm": replace(_CONV, spec=replace(_CONV.spec, unit=False)),
    "conv2d, reflect": of_shapes((8, 64, 16, 16), (64, 64, 3, 3), border=(1, 1, 1, 1)),
    "conv1d": of_shapes((8, 64, 1, 100), (64, 64, 1, 3), padding=(0, 1)),
    "conv3d": of_shapes((8, 64, 8, 14, 14), (64, 64, 3, 3, 3), padding=(1, 1, 1)),
    **{f"norm, over={over!r}": norm.Call(norm.Spec(over), "cpu", (8, 64, 14, 14), weight=True) for over in norm.OVER},
    "dynamic alignment": dynamic_alignment.Call(dynamic_alignment.Spec((3, 3)), "cpu", (8, 16, 14, 14), 32, 16),
}
"""One call of each kind. A table for each kind of device of this machine shows them in every dtype."""


KERNELS = {"cpu": "C++", "cuda": "CUDA", "triton": "Triton"}
"""The backends with kernels, in the words of the verdict."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Shows what is built, which backend serves which calls, and why the others do not."
    parser.add_argument("--json", action="store_true", help="print the same as one JSON object")


def main(options: argparse.Namespace) -> int:
    """Prints the report and returns 0."""
    found = _facts()
    print(json.dumps(found, indent=1) if options.json else _shown(found))
    return 0


def _facts() -> dict[str, Any]:
    """What the report shows, as JSON has it."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    gpu = {name: backend for name, backend in TRANSFORM.backends.items() if backend.interchangeable}
    served = {device: _served(device) for device in devices}
    return {
        "verdict": _verdict({device: by_case["conv2d"]["float32"] for device, by_case in served.items()}),
        "versions": _versions(),
        "state": {
            "compiled extension": _build(),
            **{f"{name} kernels": _gpu_kernels(name, devices[-1]) for name in gpu},
            "cuDNN graphs": _graphs(devices[-1]),
            "tuned choices": _tuned(),
            "environment": _environment(),
        },
        "served": served,
        "why not": _reasons(devices),
    }


def _shown(found: dict[str, Any]) -> str:
    """The report for a terminal of 80 columns."""
    parts = [wrapped(f"verdict: {found['verdict']}"), aligned(found["versions"].items())]
    parts += [wrapped(f"{name}: {state}") for name, state in found["state"].items()]
    for device, by_case in found["served"].items():
        dtypes = next(iter(by_case.values()))
        parts.append(aligned([(f"on {device}", *dtypes), *((case, *by.values()) for case, by in by_case.items())]))
    why_not = [
        wrapped(f"  {name}: {reason}")
        for name, distinct in found["why not"].items()
        for reason in distinct or ["serves every call above"]
    ]
    return "\n\n".join([*parts, "\n".join(["why not:", *why_not])])


def _verdict(chosen: dict[str, str]) -> str:
    """In one line: what serves a convolution in fp32 on each device, and what is missing for more."""
    serving = []
    for device, names in chosen.items():
        kernels = [KERNELS[name] for name in names.split(",") if name in KERNELS]
        served = f"{' and '.join(kernels)} kernels" if kernels else names.replace("reference", "the reference formula")
        serving.append(f"{served} on the {'GPU' if device == 'cuda' else 'CPU'}")
    used = {name for names in chosen.values() for name in names.split(",")}
    missing = [f"the {KERNELS[n]} kernels" for n in KERNELS if n not in used and (n == "cpu" or "cuda" in chosen)]
    missing += [] if "cuda" in chosen else ["a GPU"]
    lacks = f"missing for more: {', '.join(missing)}" if missing else ""
    forced = f"BCOS_KERNELS_BACKEND={dispatch.FORCED} decides" if dispatch.FORCED else ""
    speed = "fast" if used <= KERNELS.keys() else "slow"
    return "; ".join(filter(None, (f"{speed}: {', '.join(serving)}", forced or lacks)))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> dict[str, str]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = torch.backends.cpu.get_cpu_capability()
    return {
        "bcos_kernels": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        **{package: _version(package) for package in ("torchvision", "triton", "bcos")},
        "cpu": f"{platform.machine()} {cpu}, {many(torch.get_num_threads(), 'thread')}",
        "gpu": ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "none",
    }


def _build() -> str:
    """The compiled extension: whether it is there, and whether it was built for the torch that runs."""
    try:
        _C = extension.imported()
    except ImportError as error:
        return f"not there ({error}); slower backends serve its calls"
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
        return f"built for torch {built_for}, not for {torch.__version__}: build it again ({told})"
    return f"built for torch {built_for}, running {torch.__version__} ({told})"


def _gpu_kernels(name: str, device: str) -> str:
    """Where the kernels of a GPU backend run, or why they do not."""
    reasons = TRANSFORM.backends[name].why_not(_call(_CONV, device, torch.float32))
    if reasons:
        return f"not used here: {'; '.join(reasons)}"
    return "on the GPU" if device == "cuda" else "in the interpreter (TRITON_INTERPRET=1), if asked for by name"


def _graphs(device: str) -> str:
    """What the candidate graph of the cuda backend rests on: cuDNN, and the stored plans."""
    refusals = TRANSFORM.backends["cuda"].why_not(_call(_CONV, device, torch.bfloat16))
    if refusals:
        return f"not used here: {'; '.join(refusals)}"
    assert cuda.kernels is not None
    try:
        version = cuda.kernels.cudnn_version()
    except RuntimeError as error:
        return f"not used here: {error}"
    if not plans.is_private():
        return f"cuDNN {version}; no plan is stored or read, as others may write {env.PLANS}: chmod 700, or delete it"
    return f"cuDNN {version}; {many(plans.count(), 'plan')} in {env.PLANS}, to which tune adds"


def _tuned() -> str:
    try:
        count = len(tuned.read().get(tuned.device(), {}))
    except ValueError as error:
        return f"none, so that GPU kernels are chosen by prediction: {error}"
    if not torch.cuda.is_available() and not env.INTERPRETED:
        return "not needed here: on a CPU one way serves each call"
    return f"{count} for {tuned.device()} in {tuned.PATH}"


def _environment() -> str:
    value = dispatch.FORCED
    if value is None:
        return "BCOS_KERNELS_BACKEND is not set: the fastest backend that serves a call is used"
    allowed = ", ".join((*TRANSFORM.backends, *sorted(dispatch.OF_ANY_OP - TRANSFORM.backends.keys())))
    known = "" if dispatch.OF_ANY_OP.issuperset(dispatch.named(value)) else f", which is unknown: allowed are {allowed}"
    ops = () if known else (TRANSFORM, NORM, DYNAMIC_ALIGNMENT)
    others = [op.name for op in ops if dispatch.asked(op.backends, None) is None]
    free = f"; it is no backend of {' and '.join(others)}, whose calls are served as without it" if others else ""
    return f"BCOS_KERNELS_BACKEND={value}{known}{free}"


def _call(case: Any, device: str, dtype: torch.dtype) -> Any:
    """The case on a device, with all tensors in one dtype."""
    changes = {name: dtype for name in ("dtype", "weight_dtype") if hasattr(case, name)}
    spec = replace(case.spec, out_dtype=dtype) if hasattr(case.spec, "out_dtype") else case.spec
    return replace(case, device=device, spec=spec, **changes)


def _op(call: Call | norm.Call | dynamic_alignment.Call) -> Op:
    if isinstance(call, dynamic_alignment.Call):
        return DYNAMIC_ALIGNMENT
    return NORM if isinstance(call, norm.Call) else TRANSFORM


def _served(device: str) -> dict[str, dict[str, str]]:
    """Case -> dtype -> the backend that serves it on one kind of device, or none."""
    return {
        name: {str(dtype)[6:]: _chosen(_call(case, device, dtype)) for dtype in DTYPES} for name, case in CASES.items()
    }


def _chosen(call: Call | norm.Call | dynamic_alignment.Call) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):  # the environment's line tells the same
            return _op(call).choose(call)
    except ValueError:
        return "none"


def _reasons(devices: list[str]) -> dict[str, list[str]]:
    """Every distinct reason of each backend, over all calls of the tables."""
    found: dict[str, dict[str, None]] = {name: {} for name in TRANSFORM.backends}
    calls = [_call(case, device, dtype) for device in devices for case in CASES.values() for dtype in DTYPES]
    for call in calls:
        for name, reasons in _op(call).reasons(call).items():
            if name in found:  # torch serves every dynamic alignment, and nothing else
                found[name].update(dict.fromkeys(reasons))
    return {name: list(distinct) for name, distinct in found.items()}
