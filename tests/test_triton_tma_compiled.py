"""The Triton kernels with TMA compiled for GPUs that need not be there: resources, copies, tensor cores and races."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from several_kernels import examined
from triton_ir import Pipeline, wrapping_products

from bcos_kernels.core import choice
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.gpu import aot
from bcos_kernels.gpu.launches import launches
from bcos_kernels.transform import TRANSFORM, Call
from bcos_kernels.transform.call import of_shapes
from benchmarks.triton_aot import loop

pytestmark = pytest.mark.slow

SIZES = {
    "pixels": 2000, "C": 192, "F": 192, "tiles": 30, "tiles_n": 2, "splits": 1, "get_program_id": 0,
    "get_num_programs": 4, "OW": 28, "across": 7,
}  # fmt: skip
"""Of a launch whose programs take several tiles of several steps: what a kernel's loops do depends on them."""
UNITS = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}


def square(channels: int, *, arch: str = "sm_90", **options) -> Call:
    return of_shapes((256, channels, 56, 56), (channels, channels, 1, 1), arch=arch, **options)


def widening(channels: int, filters: int, *, arch: str = "sm_90", **options) -> Call:
    """Whose backward forms l again from x."""
    return of_shapes((256, channels, 56, 56), (filters, channels, 1, 1), arch=arch, **options)


def strided(channels: int, filters: int, *, arch: str = "sm_90", **options) -> Call:
    return of_shapes((256, channels, 56, 56), (filters, channels, 1, 1), arch=arch, stride=(2, 2), **options)


def calls() -> Iterator[tuple[str, Call, tuple[str, ...], bool]]:
    """(what, call, its directions, whether every tile)."""
    yield "256 filters", square(256), DIRECTIONS, True
    yield "64 filters", square(64), ("training",), False
    yield "fp16, bias", square(128, dtype=torch.float16, bias=True), ("forward", "training"), False
    yield "fp16", square(256, dtype=torch.float16), DIRECTIONS, False
    yield "fp32 outputs", square(128, out_dtype=torch.float32), DIRECTIONS, False
    yield "256 filters, fp32 outputs", square(256, out_dtype=torch.float32), ("map",), False
    yield "b = 1", square(128, b=1.0), DIRECTIONS, False
    yield "b = 1.5", square(128, b=1.5), ("forward", "explanation"), False
    yield "256 filters, b = 1.5", square(256, b=1.5), ("explanation",), True
    yield "detached", square(128, detach=True), ("training",), False
    yield "256 filters in a pair", square(256), ("map",), False
    yield "64 filters in a pair", square(64), ("map",), False
    yield "64 to 256", widening(64, 256), ("explanation", "training", "map"), False
    yield "64 to 256, fp32 outputs", widening(64, 256, out_dtype=torch.float32), ("training", "map"), False
    yield "64 to 256, fp16", widening(64, 256, dtype=torch.float16), ("training",), False
    yield "64 to 128, bias", widening(64, 128, bias=True), ("training",), False
    yield "128 to 512", widening(128, 512), ("explanation",), False
    yield "128 to 512, b = 1.5", widening(128, 512, b=1.5, bias=True), ("explanation",), False
    yield "256 to 512, stride 2", strided(256, 512), ("forward", "explanation"), True
    yield "64 to 128, stride 2", strided(64, 128), ("forward", "explanation"), False
    yield "stride 2, sm_100", strided(256, 512, arch="sm_100"), ("forward", "explanation"), False
    yield "few", of_shapes((50176, 24), (40, 24)), DIRECTIONS, False
    yield "sm_100", square(128, arch="sm_100"), DIRECTIONS, False
    yield "64 filters, sm_100", square(64, arch="sm_100"), DIRECTIONS, False
    yield "64 to 256, sm_100", widening(64, 256, arch="sm_100"), ("explanation",), False
    yield "128 to 512, sm_100", widening(128, 512, arch="sm_100"), ("explanation",), False
    yield "256 filters, sm_100", square(256, arch="sm_100"), ("explanation",), False


def with_vendor() -> Iterator[tuple[str, Call, tuple[str, ...], bool]]:
    """The same of the candidate that leaves dw to the vendor, and of strides."""
    yield "256 to 1024", widening(256, 1024), ("training",), True
    yield "256 to 1024 in a pair", widening(256, 1024), ("map",), False
    yield "256 to 1024, b = 1.5, bias", widening(256, 1024, b=1.5, bias=True), ("training",), True
    yield "512 to 1024, fp16", widening(512, 1024, dtype=torch.float16), ("training",), False
    yield "512 to 1024, fp32 outputs", widening(512, 1024, out_dtype=torch.float32), ("training", "map"), False
    yield "512 to 1024, b = 1", widening(512, 1024, b=1.0), ("training",), False
    yield "128 to 512 in a pair", widening(128, 512), ("training", "map"), False
    yield "128 to 512, b = 1.5, bias", widening(128, 512, b=1.5, bias=True), ("training",), False
    yield "64 to 512", widening(64, 512), ("training", "map"), False
    yield "256 filters", square(256), ("training", "map"), False
    yield "256 to 512, stride 2", strided(256, 512), ("training",), True
    yield "256 to 512, stride 2, in a pair", strided(256, 512), ("map",), False
    yield "256 to 512, stride 2, b = 1.5, bias", strided(256, 512, b=1.5, bias=True), ("training",), False
    yield "512 to 1024, stride 2", strided(512, 1024, b=1.5), ("training",), False
    yield "64 to 128, stride 2", strided(64, 128), ("training", "map"), False
    yield "256 to 1024, sm_100", widening(256, 1024, arch="sm_100"), ("training", "map"), False
    yield "128 to 512, sm_100", widening(128, 512, arch="sm_100"), ("training",), False
    yield "256 to 512, stride 2, sm_100", strided(256, 512, arch="sm_100"), ("training",), False


def selection() -> dict[aot.Specialisation, str]:
    """Every distinct kernel with TMA that the calls start, and the call that starts it first."""
    found = {}
    wanted = [("tma", *each) for each in calls()] + [("tma-vendor", *each) for each in with_vendor()]
    for name, what, call, directions, every_tile in wanted:
        for direction in directions:
            served = "training" if direction == "map" else direction
            tiles = [t for c, t in choice.ways(TRANSFORM, "triton", call, served) if c.name == name]
            assert tiles, (what, direction)
            for tile in tiles if every_tile else tiles[:1]:
                for started in launches(TRANSFORM, call, direction, name, tile):
                    specialised = aot.specialise(started, call.arch)
                    if any(isinstance(argument, aot.Descriptor) for argument in specialised.arguments):
                        found.setdefault(specialised, f"{name} {what}, {direction}, {tile}")
    for part in ("WITH_DX", "WITH_DW"):
        (whole,) = (w for w, what in found.items() if what.startswith("tma 64 filters, training"))
        found[changed(whole, **{part: False})] = f"64 filters, not {part}"
    return found


def changed(what: aot.Specialisation, **constants) -> aot.Specialisation:
    return what._replace(constants=tuple(sorted((dict(what.constants) | constants).items())))


class Examined(NamedTuple):
    """What is asserted on, of one compiled kernel."""

    excesses: list[str]
    products: int
    """Asynchronous ones that were followed."""
    copies: int
    """Copies to shared memory by TMA that were followed."""
    stores: bool
    """Whether TMA copies results to memory."""
    by_pointer: list[str]
    """Loads and stores of whole tiles that TMA does not serve."""
    races: list[str]
    wrapping: list[str]
    on_tensor_cores: bool


def examine(what: aot.Specialisation) -> Examined:
    """Compiles a kernel in a worker."""
    kernel = aot.compiled(what)
    pipeline = Pipeline(kernel.ttgir, **SIZES)
    by_pointer = re.findall(
        r"(?:tt\.load|tt\.store|async_copy_global_to_local) .*tensor<\d+x\d+x!tt\.ptr", kernel.ttgir
    )
    stores = "ttng.async_tma_copy_local_to_global" in kernel.ttgir
    return Examined(
        kernel.excesses(), pipeline.products, pipeline.copies, stores, by_pointer, pipeline.races,
        wrapping_products(kernel.ttir), UNITS[what.arch] in kernel.assembly,
    )  # fmt: skip


@pytest.fixture(scope="module")
def kernels() -> dict[str, tuple[aot.Specialisation, Examined]]:
    chosen = selection()
    results = zip(chosen.items(), examined(examine, chosen), strict=True)
    return {origin: (what, result) for (what, origin), result in results}


def test_no_kernel_spills_or_takes_more_than_there_is(kernels):
    assert {what.kernel for what, _ in kernels.values()} == {
        "matmul_fwd_kernel", "matmul_dgrad_kernel", "matmul_training_kernel",
    }  # fmt: skip
    excessive = {origin: found.excesses for origin, (_, found) in kernels.items() if found.excesses}
    assert not excessive


def test_tma_copies_every_tile(kernels):
    """Where Triton falls back to loads by pointer, a kernel is right and slow, which nothing else would show."""
    for origin, (what, found) in kernels.items():
        constants = dict(what.constants)
        with_dw = constants.get("WITH_DW", False)
        assert found.copies > 9, origin
        assert found.stores == constants.get("WITH_DX", True), origin
        assert len(found.by_pointer) == with_dw * constants.get("BLOCKS", 0), origin  # the sums of dw, once


def test_products_run_on_the_newest_tensor_cores(kernels):
    assert all(found.on_tensor_cores for _, found in kernels.values())


def test_no_buffer_is_refilled_while_it_is_read_or_read_before_it_is_filled(kernels):
    assert all(found.products >= 9 for _, found in kernels.values())
    racing = {origin: found.races for origin, (_, found) in kernels.items() if found.races}
    assert not racing


def test_no_offset_of_a_row_is_formed_in_32_bits(kernels):
    wrapping = {origin: found.wrapping for origin, (_, found) in kernels.items() if found.wrapping}
    assert not wrapping


def test_the_checks_find_planted_faults():
    """Tiles that a product and the norm read from shared memory; a barrier that is not waited for; a buffer too few."""
    what = aot.specialise(launches(TRANSFORM, square(256), "forward", "tma")[-1], "sm_90")
    ttgir = aot.compiled(what).ttgir
    assert not Pipeline(ttgir, **SIZES).races
    assert Pipeline(aot.compiled(changed(what, REGISTERS=False)).ttgir, **SIZES).races
    for pattern, instead in (
        (r"ttng\.wait_barrier[^\n]*", ""),
        (r"(async_tma_store_wait \{pendings = )0", r"\g<1>1"),
        (r"(warp_group_dot_wait [^{]*\{pendings = )[13]", r"\g<1>7"),
    ):
        faulty = re.sub(pattern, instead, ttgir)
        assert faulty != ttgir and Pipeline(faulty, **SIZES).races, pattern


def test_a_loop_is_not_what_waits_for_a_copy():
    """Behind the end of a kernel stand the loops that wait for its copies, each with a branch back into the kernel."""
    head = [f"/*{i:04x}*/ FMUL R{i}, R{i}, R{i} ;" for i in range(6)]
    wait = [".L_x_1:", "/*0090*/ @!P0 BRA `(.L_x_1) ;", "/*00a0*/ BRA `(.L_x_2) ;"]
    kernel = [".L_x_0:", *head, ".L_x_2:", "/*0060*/ HGMMA.64x8x16.F32 R8 ;", "/*0070*/ @P0 BRA `(.L_x_0) ;"]
    found = loop("\n".join([*kernel, "/*0080*/ EXIT ;", *wait]))
    assert found == {"FMUL": 6, "HGMMA": 1, "BRA": 1}


def test_specialisations_are_what_triton_would_compile(monkeypatch):
    """The arguments of a specialisation stand for those of the launch: Triton keys both alike."""
    monkeypatch.setattr(aot.driver, "_active", aot.Driver("sm_90"))
    for direction in DIRECTIONS:
        for started in launches(TRANSFORM, replace(square(64), arch="sm_90"), direction, "tma"):
            binder = started.kernel.create_binder()[-1]
            what = aot.specialise(started, "sm_90")
            keys = [binder(*a, **started.constants)[1] for a in (started.arguments, map(aot._value, what.arguments))]
            assert keys[0] == keys[1], what
