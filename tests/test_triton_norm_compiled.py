"""The norm's Triton kernels compiled for GPUs that need not be there: resources, and offsets beyond 32 bits.

All calls of Hopper, and of Ampere the first one; ``make thorough`` has all of Ampere's.
"""

import itertools
import re
from collections.abc import Iterator

import pytest
import torch
from several_kernels import FIRST, WHOLE, examined
from triton_ir import wrapping_products

from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.gpu import aot
from bcos_kernels.gpu.cost import LAUNCH, rates
from bcos_kernels.gpu.launches import launches
from bcos_kernels.norm import NORM, Call, Spec

pytestmark = pytest.mark.slow

IMAGES, SMALL = (256, 64, 56, 56), (256, 256, 14, 14)
HUGE = (1 << 21, 2048)
"""More than 2³¹ values."""


def call(
    over: str,
    shape: tuple[int, ...],
    arch: str,
    *,
    centered=True,
    last=True,
    given=False,
    groups=1,
    dtype=torch.bfloat16,
) -> Call:
    spec = Spec(over, groups, centered, out_dtype=dtype)
    return Call(spec, "cuda", shape, dtype, True, True, given, last, arch=arch)


def calls(arch: str) -> Iterator[Call]:
    """What needs most registers for every GPU, and all ways through the kernels for one."""
    yield call("batch", IMAGES, arch)
    for dtype in (torch.bfloat16, torch.float32):
        yield call("position", (50176, 384), arch, dtype=dtype)
        yield call("position", (4096, 8192), arch, dtype=dtype)
        yield call("position", IMAGES, arch, last=False, dtype=dtype)
    if arch == "sm_80":
        return
    for over, shape in (("batch", SMALL), ("position", (50176, 384)), ("position", (4096, 8192))):
        yield call(over, shape, arch, dtype=torch.float64)
    yield call("batch", IMAGES, arch, centered=False)
    yield call("batch", SMALL, arch, last=False, dtype=torch.float32)
    yield call("batch", IMAGES, arch, given=True)
    yield call("batch", HUGE, arch, dtype=torch.float16)
    yield call("all", SMALL, arch)
    yield call("group", SMALL, arch, groups=32)
    yield call("group", SMALL, arch, groups=32, last=False, centered=False)
    yield call("position", (256, 1024, 14, 14), arch, last=False)
    yield call("position", HUGE, arch, centered=False)


def examine(what: aot.Specialisation) -> tuple[list[str], list[str], bool]:
    """In a worker: what exceeds the GPU, offsets in 32 bits, and whether memory is read 16 bytes at a time."""
    kernel = aot.compiled(what)
    narrow = wrapping_products(kernel.ttir)
    if what.kernel != "norm_fold_kernel":  # which reads a gamma of each group and channel in a tile
        narrow += re.findall(r"tt\.addptr .* tensor<\d+x\d+xi32>", kernel.ttir)
    return kernel.excesses(), narrow, bool(re.search(r"ld\.global\.(v4|v2\.b64)", kernel.assembly))


@pytest.fixture(scope="module")
def kernels(request) -> dict[aot.Specialisation, tuple[str, tuple[list[str], list[str], bool]]]:
    """Every distinct kernel that the calls start, or the first call: the call that starts it, and what was found."""
    arch, first = request.param
    chosen = {}
    for each in itertools.islice(calls(arch), 1 if first else None):
        for direction in (*DIRECTIONS, "second", *["map"] * each.has_gradient_map):
            for started in launches(NORM, each, direction):
                chosen.setdefault(aot.specialise(started, arch), f"{each.words()} {direction} {arch}")
    return {what: (chosen[what], result) for what, result in zip(chosen, examined(examine, chosen), strict=True)}


on_both = pytest.mark.parametrize("kernels", [WHOLE["sm_90"], FIRST["sm_80"], WHOLE["sm_80"]], indirect=True)


@pytest.mark.parametrize("kernels", [WHOLE["sm_90"]], indirect=True)
def test_every_kernel_is_among_them(kernels):
    assert {what.kernel for what in kernels} == {
        "norm_moments_kernel", "norm_merge_kernel", "norm_fwd_kernel", "norm_bwd_kernel", "norm_sums_kernel",
        "norm_fold_kernel", "norm_position_fwd_kernel", "norm_position_bwd_kernel", "norm_position_second_kernel",
        "norm_map_kernel",
    }  # fmt: skip
    assert any(getattr(what.arguments[0], "large", False) for what in kernels)


@on_both
def test_no_kernel_spills_or_takes_more_than_there_is(kernels):
    excessive = {(what.kernel, origin): found[0] for what, (origin, found) in kernels.items() if found[0]}
    assert kernels and not excessive


@on_both
def test_no_offset_is_formed_in_32_bits(kernels):
    wrapping = {(what.kernel, origin): found[1] for what, (origin, found) in kernels.items() if found[1]}
    assert not wrapping


@on_both
def test_memory_is_read_in_whole_vectors(kernels):
    """Where the channels or the positions that lie side by side are a multiple of 16."""
    narrow = {
        (what.kernel, origin)
        for what, (origin, found) in kernels.items()
        if not found[2] and what.kernel in ("norm_moments_kernel", "norm_sums_kernel") and "14, 14" not in origin
    }
    assert not narrow


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_cost_is_that_of_the_bytes(arch):
    """Of a large call: each direction moves what its passes must, and starts at most four kernels."""
    (kernel,) = NORM.candidates_of("triton")
    values, rate = 256 * 64 * 56 * 56, rates(arch).bytes
    passes = {
        ("batch", True, False): (3, 3, 5), ("batch", False, False): (3, 2, 5), ("position", True, False): (2, 2, 3),
        ("batch", True, True): (2, 2, 4),
    }  # fmt: skip
    for (over, centered, given), times in passes.items():
        p = call(over, IMAGES, arch, centered=centered, given=given)
        for direction, number in zip(DIRECTIONS, times, strict=True):
            least = 2 * number * values / rate
            cost = kernel.cost(p if direction == "forward" else p.of_backward(p.needs(direction)), direction)
            assert least < cost < least + 4 * LAUNCH


PASSES = {
    ("batch", "forward", True): ["moments", "merge", "fwd"],
    ("batch", "explanation", False): ["bwd"],
    ("batch", "explanation", True): ["sums", "fold", "bwd"],
    ("batch", "training", False): ["sums", "fold", "bwd"],
    ("batch", "map", False): ["sums", "fold", "map"],
    ("position", "forward", True): ["position_fwd"],
    ("position", "explanation", True): ["position_bwd"],
    ("position", "training", True): ["position_bwd", "fold"],
    ("batch", "second", False): ["fwd", "sums", "fold", "fold", *["sums", "fold", "bwd"] * 2],
    ("batch", "second", True): ["moments", "merge", "fwd", "sums", "fold", "fold", *["sums", "fold", "bwd"] * 2],
    ("position", "second", True): ["position_second", "fold", *["position_bwd", "fold"] * 2],
}
"""The statistics, the direction and whether the norm is centered: the kernels, of which merge and fold read no x."""


@pytest.mark.parametrize("over, direction, centered", PASSES)
def test_x_is_read_no_more_often_than_it_must_be(over, direction, centered):
    started = launches(NORM, call(over, IMAGES, "sm_90", centered=centered), direction)
    names = [each.kernel.fn.__name__.removeprefix("norm_").removesuffix("_kernel") for each in started]
    assert names == PASSES[over, direction, centered]
