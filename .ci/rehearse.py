"""The tests of a GPU without one, on torch's CUDA build: ``python3 .ci/rehearse.py 2.11.0 [pytest's arguments]``.

Torch's operators are computed by its CPU kernels, and ours in the emulation of a thread block or in Triton's
interpreter (``tests/runtime``). Everything is in ``build/rehearsal-VERSION``, as ``other_torch.py`` has it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from environment import ROOT, complete, environment, run, step
from other_torch import copied

LEFT_OUT = (
    "large or models or sanitizer or bit_equal or repeats",  # take too long, or too much memory
    "replicas",  # NCCL would compute
    "tf32_only and vendor",  # a CPU does not round to tf32
    "scaled_inputs and conv1x1 and fp32",  # a CPU adds up 1024 products in another order than a GPU
    "replays and -graph]",  # the stand-in for cuDNN is not recorded in a CUDA graph
    "triton and (captured or threads)",  # nor is Triton's interpreter, which serves one thread alone
)
KINDS = {
    "cuda": ("tests/gpu", {}),
    "triton": ("tests/gpu/test_gpu_devices.py", {"TRITON_INTERPRET": "1"}),  # which takes long, and cannot be captured
}


def main(arguments: list[str]) -> int:
    version, *options = arguments or [""]
    if not re.fullmatch(r"2\.\d+\.\d+", version):
        sys.exit(f"make rehearse CUDA_TORCH={version}: a release of torch is needed, as in CUDA_TORCH=2.11.0")
    folder = ROOT / "build" / f"rehearsal-{version}"
    try:
        python = environment(folder, f"torch=={version}")
        complete(python, "test")
        copy, built = copied(folder), folder / "stand_ins"
        with step("building the stand-ins and the extension"):
            run(python, "tests/runtime/build.py", str(built), cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)})
    except subprocess.CalledProcessError as error:
        sys.exit(f"make rehearse failed: {' '.join(map(str, error.cmd))}")
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (built, copy))),
        "LD_LIBRARY_PATH": str(built),
        "LD_PRELOAD": str(built / "libcudart.so"),
        "BCOS_TEST_CUDNN": str(built / "cudnn" / "libcudnn.so.9"),
        "BCOS_TEST_GPUS": "2",
        "OMP_NUM_THREADS": "1",
    }
    codes = []
    for kind, (place, more) in KINDS.items():
        chosen = options or [place, "-k", " and not ".join([kind, *(f"({names})" for names in LEFT_OUT)])]
        command = [python, "-m", "pytest", "-q", "-m", "gpu", "-n", "2", *chosen]
        codes.append(subprocess.run(command, cwd=copy, env={**variables, **more}).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
