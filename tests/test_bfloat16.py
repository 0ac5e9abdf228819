"""What the C++ kernels store in bfloat16: rounded to nearest even, by loops that the compiler turns into vectors."""

import re

import pytest
import torch
from emulated import GXX, SOURCES, execute
from torch.utils.cpp_extension import include_paths

import bcos_kernels as bk

ENDS = (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
"""Around both ends of what a bfloat16 leaves out, and around its middle."""


def test_every_bfloat16_is_the_nearest_one():
    tops, ends = torch.arange(1 << 16, dtype=torch.int64), torch.tensor(ENDS)
    bits = ((tops[:, None] << 16) | ends).flatten()
    grad = torch.where(bits < 1 << 31, bits, bits - (1 << 32)).int().view(torch.float32)[:, None]
    x = torch.zeros(grad.shape, dtype=torch.bfloat16, requires_grad=True)
    eps = 2.0**-20  # var + eps is 1, so that the gradient of the norm is that of its output
    norm = {"over": "batch", "var": torch.full((1,), 1 - eps), "eps": eps, "out_dtype": torch.float32}
    (dx,) = torch.autograd.grad(bk.functional.norm(x, **norm), x, grad)
    expected = grad.bfloat16()
    number = ~expected.isnan()
    assert torch.equal(dx.isnan(), ~number)
    assert torch.equal(dx[number].view(torch.int16), expected[number].view(torch.int16))


@pytest.mark.slow
@pytest.mark.skipif(not GXX, reason="g++ says which loops are vectors")
@pytest.mark.parametrize("passes", ["channels", "positions"])
def test_loops_over_bfloat16_are_vectors(passes, tmp_path):
    """A conversion with a branch, as that of torch's BFloat16, keeps the loop from being one.

    The passes are compiled for bfloat16 alone: the same loops over other types are vectors anyway.
    """
    flags = ["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-DBCOS_NO_CLONES"]
    places = [f"-I{SOURCES}", *(f"-isystem{path}" for path in include_paths())]
    text = (SOURCES / "norm" / "cpu" / f"{passes}.cpp").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("template void run") or "BFloat16" in line]
    source = tmp_path / f"{passes}.cpp"
    source.write_text("\n".join(lines), encoding="utf-8")
    done = execute(GXX, *flags, *places, "-fopt-info-vec-optimized", "-c", source, "-o", "/dev/null")
    assert done.returncode == 0, done.stdout
    vectors = set(map(int, re.findall(rf"{passes}\.cpp:(\d+):\d+: optimized: +loop vectorized", done.stdout)))
    stored = [number for number, line in enumerate(lines, 1) if "rounded<" in line]
    assert len(stored) >= 3
    assert not [lines[number - 1] for number in stored if not vectors & {number - 1, number, number + 1}]
