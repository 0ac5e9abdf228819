"""What a GPU is asked, without one, on torch's CUDA build: ``python3 .ci/rehearse.py 2.11.0 [pytest's arguments]``.

First the commands that measure, at full size, with kernels that compute nothing: their times mean nothing, but what
fails around the kernels fails here, too. Then the tests: torch's operators are computed by its CPU kernels, and ours in
the emulation of a thread block or in Triton's interpreter (``tests/runtime``). Everything is in
``build/rehearsal-VERSION``, as ``other_torch.py`` has it. With arguments there are tests alone; a ``-k`` among them
takes the place of what is left out here.
"""

from __future__ import annotations

import os
import subprocess
import sys

from environment import ROOT
from other_torch import prepared

LEFT_OUT = (
    "large or models or sanitizer or bit_equal or repeats",  # take too long, or too much memory
    "replicas",  # NCCL would compute
    "tf32_only and vendor",  # a CPU does not round to tf32
    "scaled_inputs and conv1x1 and fp32",  # a CPU adds up 1024 products in another order than a GPU
    "triton and (captured or threads)",  # Triton's interpreter is not recorded in a CUDA graph, and serves one thread
)
COMMANDS = (
    "benchmarks.decisions --seconds 300",
    "benchmarks.gpu fast --no-build --seconds 120 --processes 2",
    "bcos_kernels bench --device cuda --no-layers --models resnet50 vit_s convnext_t --seconds 0 --limit 6 "
    "--processes 2 --measures inference training explanation --contenders plain reference ours",
)
KINDS = {
    "cuda": ("tests/gpu", {}),
    "triton": ("tests/gpu/test_gpu_devices.py", {"TRITON_INTERPRET": "1"}),  # which takes long, and cannot be captured
}
IDLE = {"BCOS_TEST_IDLE": "1", "BCOS_TEST_GPUS": "1"}


def main(arguments: list[str]) -> int:
    version, *options = arguments or [""]
    folder = ROOT / "build" / f"rehearsal-{version}"
    built = folder / "stand_ins"
    build = ("tests/runtime/build.py", str(built))
    what = "the stand-ins and the extension"
    python, copy, variables = prepared("rehearse CUDA_TORCH", version, folder, what, *build)
    variables |= {
        "PYTHONPATH": os.pathsep.join(map(str, (built, copy))),
        "LD_LIBRARY_PATH": str(built),
        "LD_PRELOAD": str(built / "libcudart.so"),
        "BCOS_TEST_CUDNN": str(built / "cudnn" / "libcudnn.so.9"),
        "BCOS_TEST_GPUS": "2",
        "OMP_NUM_THREADS": "1",
    }
    codes = []
    for command in () if options else COMMANDS:
        print(f"$ python -m {command}", flush=True)
        codes.append(subprocess.run([python, "-m", *command.split()], cwd=copy, env=variables | IDLE).returncode)
    for kind, (place, more) in KINDS.items():
        served = " and not ".join([kind, *(f"({names})" for names in LEFT_OUT)])
        command = [python, "-m", "pytest", "-q", "-n", "2", "-m", "gpu", place, "-k", served, *options]
        codes.append(subprocess.run(command, cwd=copy, env=variables | more).returncode)
    return int(any(codes))  # which are negative where a process was killed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
