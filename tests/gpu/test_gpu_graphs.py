"""The candidate graph by cuDNN itself: which steps it takes, that they are right, and that stored plans are used."""

import os
import subprocess
import sys

import pytest
import torch
from cases import Case, error
from on_gpu import exact, run, tensors

from bcos_kernels.core import choice
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.transform import TRANSFORM
from bcos_kernels.transform.cuda import graph_why_not

CASES = [
    Case("conv3x3", (4, 64, 14, 14), (128, 64, 3, 3), {"padding": 1}),
    Case("conv3x3_stride2", (4, 64, 14, 14), (64, 64, 3, 3), {"padding": 1, "stride": 2}),
    Case("conv3x3_b1.5", (4, 64, 14, 14), (64, 64, 3, 3), {"padding": 1, "b": 1.5}),
    Case("dilated", (4, 64, 15, 14), (64, 64, 3, 3), {"padding": 2, "dilation": 2}),
    Case("conv1x1", (4, 256, 14, 14), (64, 256, 1, 1)),
    Case("linear", (520, 384), (1536, 384)),
    Case("linear_b2.5", (520, 384), (1536, 384), {"b": 2.5}),
    Case("unaligned_conv", (2, 30, 9, 9), (65, 30, 3, 3), {"padding": 1}),
    Case("unaligned_linear", (100, 385), (1001, 385)),
]
ULP = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-11}
"""Half of the distance of neighbouring numbers, where 1 is the largest; operands of fp32 are rounded to tf32."""
GRAPH = next(c for c in TRANSFORM.candidates if c.name == "graph")


@pytest.fixture(autouse=True)
def _of_cuda_alone(backend):
    if backend != "cuda":
        pytest.skip("Triton has no candidate graph")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "tf32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cudnn_takes_it_and_it_is_right(case, dtype, force):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    x, weight = tensors(case, dtype)
    truth, found = exact(case, x, weight), {}
    for candidate in ("vendor", "graph"):
        with choice.forced(candidate) as chosen:
            found[candidate] = run(case, x, weight)
    for direction in DIRECTIONS:
        call = chosen["forward"][0]
        call = call if direction == "forward" else call.of_backward(call.needs(direction))
        reason = graph_why_not(call, direction, True) if GRAPH.can_serve(call, direction) else ""
        assert reason == "" or (case.name.startswith("unaligned") and reason.startswith("cuDNN")), direction
    assert str(chosen["forward"][1]) == "cuda graph"
    for mine, theirs, true in zip(found["graph"], found["vendor"], truth, strict=True):
        assert error(mine.cpu(), true) < 1.1 * error(theirs.cpu(), true) + ULP[dtype]


def test_a_stored_plan_serves_the_next_process(tmp_path):
    code = (
        "import torch, bcos_kernels as bk\n"
        "from bcos_kernels.core.choice import forced\n"
        "x = torch.ones(4, 64, 14, 14, dtype=torch.bfloat16, device='cuda').to(memory_format=torch.channels_last)\n"
        "w = torch.ones(64, 64, 3, 3, dtype=torch.bfloat16, device='cuda')\n"
        "with forced('graph'):\n"
        "    print(bk.functional.bcos_conv2d(x, w, padding=1, backend='cuda').double().sum().item())\n"
    )
    environment = {**os.environ, "BCOS_KERNELS_CACHE": str(tmp_path / "choices.json")}
    said, written = [], []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        said.append(done.stdout)
        written.append([(file.name, file.stat().st_mtime_ns) for file in (tmp_path / "plans").iterdir()])
    assert said[0] == said[1] and written[0] == written[1] and len(written[0]) == 1
