"""The Triton kernels compiled for GPUs that need not be there: resources, tensor cores, races, wide offsets.

All cases of Hopper, and of the four other GPUs one case; ``make thorough`` has all of theirs.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from several_kernels import FIRST, WHOLE, examined, of_every_gpu
from triton.backends.compiler import GPUTarget
from triton_ir import Pipeline, wrapping_products

from bcos_kernels.core import choice
from bcos_kernels.core.candidate import DIRECTIONS, Tile
from bcos_kernels.gpu import aot, timing
from bcos_kernels.gpu.launch import recording
from bcos_kernels.gpu.launches import launches
from bcos_kernels.transform import TRANSFORM, Call
from bcos_kernels.transform.call import of_shapes
from bcos_kernels.transform.triton import BACKEND

pytestmark = pytest.mark.slow

DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32, "fp64": torch.float64,
}  # fmt: skip
EVERY_TILE = of_shapes((256, 128, 28, 28), (128, 128, 3, 3), padding=(1, 1))
CALLS = {
    "1x1": of_shapes((256, 256, 56, 56), (64, 256, 1, 1)),
    "3x3, stride 2": of_shapes((256, 128, 56, 56), (128, 128, 3, 3), stride=(2, 2), padding=(1, 1)),
    "7x7 of 6 channels, stride 2": of_shapes((256, 6, 224, 224), (64, 6, 7, 7), stride=(2, 2), padding=(3, 3)),
    "32 groups": of_shapes((256, 128, 56, 56), (128, 4, 3, 3), padding=(1, 1), groups=32),
    "depthwise 7x7": of_shapes((256, 96, 56, 56), (96, 1, 7, 7), padding=(3, 3), groups=96),
    "linear": of_shapes((50176, 384), (1536, 384)),
    "linear, bias": of_shapes((50176, 384), (1536, 384), bias=True),
    "1000 classes": of_shapes((256, 2048, 7, 7), (1000, 2048, 1, 1)),
    "max_out 2": of_shapes((256, 64, 56, 56), (128, 64, 3, 3), padding=(1, 1), max_out=2),
    "b = 1.5": of_shapes((256, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1), b=1.5),
    "b = 1": of_shapes((256, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1), b=1.0),
    "b a tensor, bias": of_shapes((256, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1), b=None, bias=True),
    "weights of any length": of_shapes((256, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1), unit=False),
    "detached": of_shapes((256, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1), detach=True),
    "fp32 weights": of_shapes((256, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1), weight_dtype=torch.float32),
}


def typed(p: Call, dtype: str, arch: str) -> Call:
    kind = DTYPES[dtype]
    weight = torch.float32 if p.weight_dtype == torch.float32 and dtype != "fp64" else kind
    spec = replace(p.spec, out_dtype=kind)
    return replace(p, spec=spec, dtype=kind, weight_dtype=weight, tf32=dtype == "tf32", arch=arch)


def of_fp32_outputs(p: Call) -> Call:
    """The call under autocast of fp32 parameters."""
    return replace(p, spec=replace(p.spec, out_dtype=torch.float32))


def cases(arch: str) -> Iterator[tuple[str, Call, bool]]:
    """(what, call, whether every tile) of one GPU."""
    if arch == "sm_86":  # has the least shared memory, of which a product takes most where it forms u from fp32
        yield "3x3 bf16, fp32 outputs", of_fp32_outputs(typed(EVERY_TILE, "bf16", arch)), True
    yield "3x3 bf16", typed(EVERY_TILE, "bf16", arch), True
    if arch == "sm_90":
        for dtype in ("fp32", "tf32"):
            yield f"3x3 {dtype}", typed(EVERY_TILE, dtype, arch), True
        yield "3x3 fp16", typed(EVERY_TILE, "fp16", arch), False
        yield "linear, bias fp32", typed(CALLS["linear, bias"], "fp32", arch), False
        yield "3x3 bf16, fp32 outputs", of_fp32_outputs(typed(EVERY_TILE, "bf16", arch)), False
        for name in ("1x1", "3x3, stride 2", "32 groups", "max_out 2", "b a tensor, bias"):
            yield f"{name} fp64", typed(CALLS[name], "fp64", arch), False
        for name, p in CALLS.items():
            yield f"{name} bf16", typed(p, "bf16", arch), False
        return
    for dtype in {"sm_80": ("fp32", "tf32"), "gfx942": ("fp32",)}.get(arch, ()):
        yield f"3x3 {dtype}", typed(EVERY_TILE, dtype, arch), False
    if arch == "gfx942":
        yield "b = 1.5 fp64", typed(CALLS["b = 1.5"], "fp64", arch), False
    for name in ("7x7 of 6 channels, stride 2", "depthwise 7x7", *["32 groups"] * (arch == "sm_100")):
        yield f"{name} bf16", typed(CALLS[name], "bf16", arch), False


def selection(arch: str, *, first: bool = False) -> dict[aot.Specialisation, str]:
    """Every distinct kernel that the cases start, with the case that starts it first, in every candidate but tma.

    The kernels of tma have a file of their own. ``first``: those of the first case, in the first tile of a candidate.
    """
    found = {}
    for what, p, every_tile in itertools.islice(cases(arch), 1 if first else None):
        channels_last = what != "fp32 weights bf16"  # one of them as PyTorch makes a weight
        for direction in DIRECTIONS:
            tried = set()
            for candidate, tile in choice.ways(TRANSFORM, "triton", p, direction):
                if candidate.name.startswith("tma") or (candidate in tried and (first or not every_tile)):
                    continue
                tried.add(candidate)
                for started in launches(TRANSFORM, p, direction, candidate.name, tile, channels_last):
                    found.setdefault(aot.specialise(started, p.arch), f"{what}, {direction}, {candidate}, {tile}")
        training = {candidate.name for candidate, _ in choice.ways(TRANSFORM, "triton", p, "training")}
        for name in sorted(training & {"semi", "vendor"}) if p.takes_gradient_map and not p.depthwise else ():
            for started in launches(TRANSFORM, p, "map", name, channels_last=channels_last):
                found.setdefault(aot.specialise(started, p.arch), f"{what}, a pair by {name}")
        if p.has_second(frozen=False):
            for started in launches(TRANSFORM, p, "second", "vendor", channels_last=channels_last):
                found.setdefault(aot.specialise(started, p.arch), f"{what}, second derivative")
    return found


class Examined(NamedTuple):
    """What is asserted on, of one compiled kernel."""

    excesses: list[str]
    products: int
    """Asynchronous ones that were followed."""
    races: list[str]
    wrapping: list[str]
    tensor_core: str | None


TENSOR_CORES = {
    "tcgen05": r"tcgen05\.mma",
    "wgmma": r"wgmma\.mma_async",
    "mma.sync": r"mma\.sync",
    "mfma": r"v_mfma_",
}


def examine(what: aot.Specialisation) -> Examined | str:
    """Compiles a kernel in a worker; the compiler's message where it does not compile."""
    try:
        kernel = aot.compiled(what)
    except Exception as error:  # of any kind: the message is the test's
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        return "\n".join(f"{type(cause).__name__}: {cause}"[-1000:] for cause in causes)
    pipeline = Pipeline(kernel.ttgir)
    used = next((name for name, pattern in TENSOR_CORES.items() if re.search(pattern, kernel.assembly)), None)
    return Examined(
        kernel.excesses(), pipeline.products, pipeline.races, wrapping_products(kernel.ttir), used
    )  # fmt: skip


@pytest.fixture(scope="module")
def kernels(request) -> dict[aot.Specialisation, tuple[str, Examined | str]]:
    """Every kernel of a selection, where it comes from, and what was found."""
    arch, first = request.param
    chosen = selection(arch, first=first)
    return {what: (chosen[what], result) for what, result in zip(chosen, examined(examine, chosen), strict=True)}


def described(kernels) -> dict[str, Examined]:
    """Description -> what was found, of the kernels that compile."""
    found = {}
    for what, (origin, result) in kernels.items():
        if not isinstance(result, str):
            sizes = {
                k: v for k, v in what.constants if k in ("BM", "BN", "BK", "PRECISION", "FUSED", "DETACHED", "FLAT")
            }
            found[f"{what.kernel} {sizes} {what.warps} warps, {what.stages} stages, of {origin}"] = result
    return found


def shown(found: dict[str, list]) -> str:
    return "\n".join(f"{what}: {', '.join(map(str, v))}" for what, v in found.items())


@of_every_gpu
def test_every_kernel_compiles(kernels):
    failed = {origin: result for origin, result in kernels.values() if isinstance(result, str)}
    assert not failed, "\n".join(f"{origin}: {message}" for origin, message in failed.items())


@pytest.mark.parametrize("kernels", WHOLE.values(), indirect=True)
def test_every_kernel_is_among_them(kernels):
    assert {what.kernel for what in kernels} >= {
        "conv2d_fwd_kernel", "conv2d_dgrad_kernel", "conv2d_wgrad_kernel", "depthwise_fwd_kernel",
        "depthwise_bwd_kernel", "depthwise_dgrad_kernel", "depthwise_wgrad_kernel", "patch_norm_squares_kernel",
        "patch_norm_fwd_kernel", "patch_norm_bwd_kernel", "scale_fwd_kernel", "scale_bwd_kernel",
        "scale_second_kernel", "weight_norm_fwd_kernel", "weight_norm_bwd_kernel",
    }  # fmt: skip


@of_every_gpu
def test_no_kernel_spills_or_takes_more_than_there_is(kernels):
    excessive = {what: result.excesses for what, result in described(kernels).items() if result.excesses}
    assert not excessive, shown(excessive)


NEWEST = {"sm_80": "mma.sync", "sm_86": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}


@of_every_gpu
def test_half_precision_products_run_on_the_newest_tensor_cores(kernels):
    """In tiles of 64 rows and more, as wgmma and tcgen05 demand."""
    used = {
        f"{what.kernel} of {origin}": result.tensor_core
        for what, (origin, result) in kernels.items()
        if "conv2d_" in what.kernel and "bf16" in origin and dict(what.constants)["BM"] >= 64
    }
    (arch,) = {what.arch for what in kernels}
    assert len(used) > len(kernels) / 10 and set(used.values()) == {NEWEST[arch]}, used


@pytest.mark.parametrize("kernels", [WHOLE["sm_90"], WHOLE["sm_100"], FIRST["sm_100"]], indirect=True)
def test_no_buffer_is_refilled_while_a_product_reads_it(kernels):
    found = described(kernels)
    assert sum(result.products > 0 for result in found.values()) > len(kernels) / 20
    racing = {what: result.races for what, result in found.items() if result.races}
    assert not racing, shown(racing)


@of_every_gpu
def test_no_offset_of_a_row_is_formed_in_32_bits(kernels):
    found = {origin: r.wrapping for origin, r in kernels.values() if not isinstance(r, str) and r.wrapping}
    assert not found, shown(found)


def test_no_loop_over_rows_leaves_32_bits():
    """Of the largest call that is served: the step behind the last row would be negative, and so below the limit."""
    rows = next(n for n in range(2**31 - 1, 0, -(2**15)) if not BACKEND.why_not(of_shapes((n, 16), (16, 16))))
    (wgrad,) = (
        started for started in launches(TRANSFORM, of_shapes((rows, 16), (16, 16)), "training", "semi")
        if started.kernel.fn.__name__ == "conv2d_wgrad_kernel"
    )  # fmt: skip
    assert any(value == rows for value in wgrad.arguments if isinstance(value, int)) and wgrad.grid[2] > 1
    assert rows + wgrad.grid[2] * wgrad.constants["BK"] < 2**31


ELEMENTWISE = ("scale_fwd_kernel", "scale_bwd_kernel", "depthwise_fwd_kernel", "depthwise_bwd_kernel",
               "weight_norm_fwd_kernel")  # fmt: skip


def test_what_no_product_rounds_is_divided_exactly():
    """In fp32, where an approximation would show beside a sum of few terms; half precision does without."""
    for dtype, exact in (("fp32", True), ("bf16", False)):
        found = {}
        for name, candidate in (("3x3, stride 2", "vendor"), ("depthwise 7x7", "one-pass")):
            for direction in ("forward", "training"):
                for started in launches(TRANSFORM, typed(CALLS[name], dtype, "sm_90"), direction, candidate):
                    if started.kernel.fn.__name__ in ELEMENTWISE:
                        what = aot.specialise(started, "sm_90")
                        found.setdefault(what.kernel, []).append("div.full" in aot.compiled(what).assembly)
        assert found.keys() == {*ELEMENTWISE}
        assert any(map(any, found.values())) is not exact, found


# ------------------------------------------------------------------------------------------------ the checks themselves


@triton.jit
def racing_kernel(x_ptr, w_ptr, y_ptr, n_ptr, pixels, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y = x wᵀ and Σx² of each row from one tile: the product still reads the buffer that the next copy fills."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < pixels
    column = tl.arange(0, BN)
    rk = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    start = row.to(tl.int64)[:, None] * K
    for k in range(0, K, BK):
        a = tl.load(x_ptr + start + (k + rk)[None, :], mask=inside[:, None], other=0.0)
        b = tl.load(w_ptr + column[None, :] * K + (k + rk)[:, None])
        wide = a.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        acc = tl.dot(a, b, acc)
    at = row.to(tl.int64)[:, None] * BN + column[None, :]
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=inside[:, None])
    tl.store(n_ptr + row, squares, mask=inside)


@triton.jit
def wrapping_kernel(x_ptr, y_ptr, pixels, C, BM: tl.constexpr, BN: tl.constexpr):
    """y = x with a row's offset formed in 32 bits, in a loop over the rows."""
    column = tl.arange(0, BN)
    for start in range(tl.program_id(1) * BM, pixels, BM):
        row = start + tl.arange(0, BM)
        inside = (row < pixels)[:, None] & (column < C)[None, :]
        offsets = row[:, None] * C + column[None, :]
        tl.store(y_ptr + offsets, tl.load(x_ptr + offsets, mask=inside, other=0.0), mask=inside)


BF16, FP32 = aot.Pointer(torch.bfloat16, False), aot.Pointer(torch.float32, False)


def planted(kernel: str, arguments: tuple, arch: str = "sm_90", **constants) -> aot.Compiled:
    return aot.compiled(aot.Specialisation(arch, __name__, kernel, arguments, tuple(constants.items()), 4, 3))


def test_the_race_check_finds_a_planted_race():
    """The one that triton-lang/triton issue 6691 describes; tcgen05 waits for its barrier instead."""
    arguments = (BF16, BF16, BF16, FP32, 7, 16)
    hopper = Pipeline(planted("racing_kernel", arguments, BM=128, BN=64, BK=64).ttgir)
    assert hopper.products and hopper.races
    blackwell = Pipeline(planted("racing_kernel", arguments, "sm_100", BM=128, BN=64, BK=64).ttgir)
    assert blackwell.products and not blackwell.races


def test_the_race_check_finds_our_kernel_without_its_register_operand():
    p = typed(CALLS["1x1"], "bf16", "sm_90")
    what = aot.specialise(launches(TRANSFORM, p, "forward", "one-pass")[-1], "sm_90")
    for registers in (True, False):
        constants = dict(what.constants) | {"REGISTERS": registers}
        pipeline = Pipeline(aot.compiled(what._replace(constants=tuple(constants.items()))).ttgir)
        assert pipeline.products and bool(pipeline.races) is not registers


@pytest.mark.parametrize("after", [1, 2])
def test_the_race_check_finds_a_buffer_too_few(after):
    """In the form itself: the copies' buffers turn over one buffer too early."""
    p = typed(EVERY_TILE, "bf16", "sm_90")
    ttgir = aot.compiled(aot.specialise(launches(TRANSFORM, p, "forward", "one-pass")[-1], "sm_90")).ttgir
    assert "%c3_i32" in ttgir and not Pipeline(ttgir).races
    fewer = re.sub(r"(arith\.cmpi sge, \S+) %c3_i32", rf"\1 %c{after}_i32", ttgir)
    assert fewer != ttgir and Pipeline(fewer).races


def test_the_offset_check_finds_a_planted_product():
    assert wrapping_products(planted("wrapping_kernel", (BF16, BF16, 7, 16), BM=128, BN=64).ttir)
    assert not wrapping_products(planted("racing_kernel", (BF16, BF16, BF16, FP32, 7, 16), BM=128, BN=64, BK=64).ttir)


def test_what_exceeds_the_gpu_is_named():
    p = typed(EVERY_TILE, "bf16", "sm_90")
    tile = Tile(128, 128, 64, 4, 3)  # 4 warps cannot hold what 8 do
    what = aot.specialise(launches(TRANSFORM, p, "training", "one-pass", tile)[1], "sm_90")
    assert "conv2d_dgrad" in what.kernel and any("spills" in excess for excess in aot.compiled(what).excesses())
    deep = aot.compiled(what._replace(stages=9))._replace(of=what._replace(arch="gfx942"))
    assert any("shared" in excess for excess in deep.excesses())


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
def test_specialisations_are_what_triton_would_compile(arch, monkeypatch):
    """The arguments of a specialisation stand for those of the launch: Triton keys both alike."""
    monkeypatch.setattr(triton.runtime.driver, "_active", aot.Driver(arch))
    assert isinstance(aot.ARCHITECTURES[arch].target, GPUTarget)
    large = replace(CALLS["linear"], x_shape=(1 << 22, 384))
    for p in (EVERY_TILE, CALLS["7x7 of 6 channels, stride 2"], CALLS["depthwise 7x7"], large):
        for started in launches(
            TRANSFORM, replace(p, arch=arch), "training", "semi" if not p.depthwise else "one-pass"
        ):
            binder = started.kernel.create_binder()[-1]
            what = aot.specialise(started, arch)
            keys = [binder(*a, **started.constants)[1] for a in (started.arguments, map(aot._value, what.arguments))]
            assert keys[0] == keys[1], what


def test_tune_compiles_in_threads_what_it_measures(monkeypatch):
    """All that its launches need, under their keys, each once; one that fails stops no other."""
    gpu, misses, done = aot.Driver("sm_90"), [], []
    gpu.get_current_device = lambda: "a GPU of its own"
    monkeypatch.setattr(triton.runtime.driver, "_active", gpu)
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **told: misses.append(told["fn"].name))
    forward = timing.Noted(TRANSFORM, "triton", of_shapes((2, 16, 4, 4), (16, 16, 3, 3), padding=(1, 1)), "forward")
    noted, cpu = [forward, forward.of("explanation"), forward], torch.device("cpu")
    found = timing.kernels(noted)
    names = [what.kernel for what in found]
    assert {"conv2d_fwd_kernel", "conv2d_dgrad_kernel", "scale_bwd_kernel", "patch_norm_fwd_kernel"} <= {*names}
    assert len({*found}) == len(found) and not misses

    def compile_here(what, usual=aot.compile_here):
        if "scale_bwd" in what.kernel:
            raise RuntimeError("planted")
        return usual(what)

    monkeypatch.setattr(aot, "compile_here", compile_here)
    timing.compile_kernels(found, cpu, lambda: done.append(None))
    sound = [name for name in names if "scale_bwd" not in name]
    assert len(done) == len(found) and sorted(name.split(".")[-1] for name in misses) == sorted(sound)
    misses.clear()
    for what in noted[:2]:
        with recording() as started:
            run = timing._runner(what, timing._first(what), cpu)
            for trial in timing.listed(what):
                run(trial.candidate, trial.tile)
        for launch in started:
            options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
            launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.constants, **options)
    assert misses and all("scale_bwd" in name for name in misses)
