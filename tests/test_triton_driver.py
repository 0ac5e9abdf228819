"""Every kernel compiled, loaded and started by Triton's own launcher for Hopper, in front of a stand-in for the driver.

It refuses what a GPU would refuse: more shared memory than there is, a grid that is too large, a tensor map that breaks
a rule or reaches beyond its tensor, a pointer into no tensor. ``make thorough`` has more shapes, every b beside every
dtype, and every tile.
"""

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from sys import platform

import pytest
import torch
import triton
from emulated import GXX
from launcher import Driver, Memory
from triton.runtime.errors import OutOfResources

from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.dynamic_alignment import DYNAMIC_ALIGNMENT
from bcos_kernels.dynamic_alignment import Call as AlignmentCall
from bcos_kernels.gpu import aot
from bcos_kernels.gpu.launch import Launch
from bcos_kernels.gpu.launches import launches
from bcos_kernels.norm import NORM
from bcos_kernels.norm import Call as NormCall
from bcos_kernels.norm import Spec as NormSpec
from bcos_kernels.transform import TRANSFORM, Call
from bcos_kernels.transform.call import of_shapes
from bcos_kernels.transform.triton import BACKEND
from benchmarks import alignments

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GXX or platform != "linux", reason="the stand-in is compiled by g++, for Linux"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and torch has loaded its driver"),
]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
MOST_ROWS = 2**31 - 2**17
"""The most pixels × groups of a padded input that the kernels serve."""
IMAGES = MOST_ROWS // 256
"""The most images of 14×14 pixels whose padding is 1."""


@pytest.fixture(scope="module")
def driver():
    driver = Driver()
    with aot.active(driver):
        yield driver


# ----------------------------------------------------------------------------------------------- the kernels themselves

LAYERS = {
    # of ResNet-50
    "7x7 of 6 channels, stride 2": ((256, 6, 224, 224), (64, 6, 7, 7), {"stride": (2, 2), "padding": (3, 3)}),
    "1x1, 64 to 256": ((256, 64, 56, 56), (256, 64, 1, 1), {}),
    "1x1, 1024 to 256": ((256, 1024, 14, 14), (256, 1024, 1, 1), {}),
    "1x1, stride 2": ((256, 256, 56, 56), (512, 256, 1, 1), {"stride": (2, 2)}),
    "3x3": ((256, 128, 28, 28), (128, 128, 3, 3), {"padding": (1, 1)}),
    "3x3, stride 2": ((256, 128, 56, 56), (128, 128, 3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "1000 classes": ((256, 2048, 7, 7), (1000, 2048, 1, 1), {}),
    # of a ViT
    "linear": ((256 * 197, 384), (1536, 384), {}),
    "linear, 2000 to 999": ((3, 2000), (999, 2000), {}),
    # of others
    "32 groups": ((256, 128, 56, 56), (128, 4, 3, 3), {"padding": (1, 1), "groups": 32}),
    "depthwise": ((256, 96, 56, 56), (96, 1, 7, 7), {"padding": (3, 3), "groups": 96}),
    "max_out 2": ((256, 64, 56, 56), (128, 64, 3, 3), {"padding": (1, 1), "max_out": 2}),
    "odd": ((3, 7, 13, 11), (17, 7, 3, 2), {"stride": (2, 1), "dilation": (1, 2)}),
    "one pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "three axes": ((2, 16, 5, 9, 9), (24, 16, 3, 3, 3), {"padding": (1, 1, 1)}),
    # as large as any that is served
    "as many rows as there may be": ((MOST_ROWS, 16), (32, 16), {}),
    "as many images": ((IMAGES, 16, 14, 14), (32, 16, 3, 3), {"padding": (1, 1)}),
    "as many images, stride 2": ((MOST_ROWS // 196, 16, 14, 14), (32, 16, 1, 1), {"stride": (2, 2)}),
    "as many images × groups": ((IMAGES // 4, 16, 14, 14), (16, 4, 3, 3), {"padding": (1, 1), "groups": 4}),
    "as many depthwise": ((IMAGES // 16, 16, 14, 14), (16, 1, 3, 3), {"padding": (1, 1), "groups": 16}),
    "many depthwise channels": ((1, 1 << 23, 7, 7), (1 << 23, 1, 3, 3), {"padding": (1, 1), "groups": 1 << 23}),
    "many groups": ((1, 140006, 7, 7), (140006, 2, 3, 3), {"padding": (1, 1), "groups": 70003}),
    "many outputs": ((4, 16), (1 << 24, 16), {}),
}
KINDS = ((BF16, 2.0), (BF16, 1.0), (FP16, 2.5), (FP32, 2.0), (FP32, None))
"""The dtypes and b of each layer; None is a tensor b."""
CHOSEN = [
    ("1x1, stride 2", BF16, 2.0, "tma-vendor"),
    ("32 groups", FP16, 2.5, "semi"),
    ("odd", BF16, 1.0, "one-pass"),
    ("as many rows as there may be", BF16, 1.0, "tma"),
    ("as many rows as there may be", FP16, 2.5, "tma-vendor"),
    ("as many images", FP32, 2.0, "one-pass"),
    ("as many images", BF16, 1.0, "vendor"),
    ("as many images, stride 2", BF16, 2.0, "tma"),
    ("many depthwise channels", BF16, 2.0, "one-pass"),
    ("many outputs", BF16, 2.0, "vendor"),
]
"""What of them ``make test`` starts, and by which candidate."""


def call_of(name: str, dtype: torch.dtype, b: float | None, **options) -> Call:
    x, weight, usual = LAYERS[name]
    return of_shapes(x, weight, **{"dtype": dtype, "b": b, **usual, **options})


def combinations() -> Iterator:
    for name, (dtype, b) in itertools.product(LAYERS, KINDS):
        call = call_of(name, dtype, b)
        for candidate in TRANSFORM.candidates_of("triton"):
            if any(candidate.can_serve(call, direction) for direction in DIRECTIONS):
                what = name, dtype, b, candidate.name
                marks = () if what in CHOSEN else pytest.mark.thorough
                yield pytest.param(*what, marks=marks, id=f"{name}-{str(dtype)[6:]}-{b or 'tensor'}-{candidate}")


def of_layer(call: Call, name: str, every_tile: bool) -> Iterator[list[Launch]]:
    """The launches of each direction that the candidate of this name serves, in its first tile or in every one."""
    (candidate,) = (c for c in TRANSFORM.candidates_of("triton") if c.name == name)
    for direction in DIRECTIONS:
        if candidate.can_serve(call, direction):
            for tile in [*candidate.tiles(call, direction)][: None if every_tile else 1] or [None]:
                yield launches(TRANSFORM, call, direction, name, tile)
    if candidate.takes_gradient_map and call.takes_gradient_map and candidate.can_serve(call, "training"):
        yield launches(TRANSFORM, call, "map", name)
    if candidate.second is not None and call.has_second(frozen=False):
        yield launches(TRANSFORM, call, "second", name)


@pytest.mark.parametrize("name, dtype, b, candidate", list(combinations()))
def test_layers(name, dtype, b, candidate, driver):
    call = call_of(name, dtype, b)
    assert not BACKEND.why_not(call)
    every_tile = "tma" in candidate and (name, dtype, b, candidate) not in CHOSEN
    for found in of_layer(call, candidate, every_tile):
        driver.start(found)


def test_depthwise_layers_whose_b_is_a_tensor(driver):
    """The kernels of other groups form the gradient of b, and take fewer groups."""
    call = call_of("many depthwise channels", BF16, None)
    assert not BACKEND.why_not(call)
    for candidate in TRANSFORM.candidates_of("triton"):
        for found in of_layer(call, candidate.name, False):
            driver.start(found)


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [
    {"bias": True}, {"unit": False, "bias": True}, {"weight_dtype": FP32, "out_dtype": FP32}, {"detach": True},
    {"dtype": FP32, "tf32": True}, {"dtype": torch.float64},
], ids=", ".join)  # fmt: skip
@pytest.mark.parametrize("name", ["1x1, 64 to 256", "1x1, stride 2", "3x3", "linear", "depthwise"])
def test_options_of_layers(name, changes, driver):
    call = call_of(name, **{"dtype": BF16, "b": 2.0, **changes})
    for candidate in TRANSFORM.candidates_of("triton"):
        for found in of_layer(call, candidate.name, False):
            driver.start(found)


NORMS = {
    "batch": ("batch", (256, 64, 56, 56)),
    "all": ("all", (256, 256, 14, 14)),
    "group": ("group", (256, 256, 14, 14)),
    "group of one image": ("group", (1, 64, 7, 5)),
    "position": ("position", (256, 384, 14, 14)),
    "tokens": ("position", (256 * 197, 384)),
    "wide tokens": ("position", (512, 16384)),
    "one value": ("all", (1, 1, 1, 1)),
    "as many positions as there may be": ("batch", (2**30 // 64, 3, 8, 8)),
    "as many tokens": ("position", (2**30, 24)),
    "as many images": ("group", (2**30 // 4, 32, 2, 2)),
    "many channels": ("batch", (2, 1 << 30)),
}
CHOSEN_NORMS = ("group of one image", "as many tokens", "many channels")
"""Those that ``make test`` starts, centered and in bfloat16."""


@pytest.mark.parametrize("name, kind, dtype", [
    pytest.param(name, kind, dtype, marks=() if name in CHOSEN_NORMS and dtype == BF16 else pytest.mark.thorough)
    for name in NORMS
    for kind, dtype in (("centered", BF16), ("uncentered", FP32), ("given", FP16))
    if kind != "given" or NORMS[name][0] == "batch"
])  # fmt: skip
def test_norms(name, kind, dtype, driver):
    over, shape = NORMS[name]
    spec = NormSpec(over, 8 if over == "group" else 1, kind != "uncentered", out_dtype=dtype)
    for last in (True, False) if len(shape) == 4 else (True,):
        call = NormCall(spec, "cuda", shape, dtype, True, True, kind == "given", last, arch="sm_90")
        assert not call.unserved(2**30)
        for direction in (*DIRECTIONS, "second", *["map"] * call.has_gradient_map):
            driver.start(launches(NORM, call, direction))


def of_alignment() -> Iterator:
    """That of ``make test`` first, with as many pixels as there may be."""
    first, *others = alignments.calls("coda_cifar10", 256, "sm_90", BF16)
    most = replace(first, x_shape=(2**30 // 1024, first.x_shape[1], 32, 32))
    yield pytest.param(most, id=most.label)
    for norm in ("l1", "l2"):
        call = replace(most, spec=replace(most.spec, norm=norm))
        yield pytest.param(call, id=call.label, marks=pytest.mark.thorough)
    for call in (first, *others, *alignments.calls("coda_imagenet", 32, "sm_90", BF16)):
        for dtype in (BF16, FP16, FP32):
            typed = replace(call, dtype=dtype)
            yield pytest.param(typed, id=typed.label, marks=pytest.mark.thorough)


@pytest.mark.parametrize("call", list(of_alignment()))
def test_alignments(call: AlignmentCall, driver):
    assert not call.unserved()
    for direction in DIRECTIONS:
        driver.start(launches(DYNAMIC_ALIGNMENT, call, direction))


# ------------------------------------------------------------------------------------------------ the stand-in itself


@triton.jit
def empty_kernel(x):
    pass


MAX_DYNAMIC_SHARED_SIZE = 8  # as cuda.h numbers the attributes of a function
ON_GPU = torch.empty(64, 64, dtype=BF16, device="meta")


def planted(grid: tuple[int, ...], x) -> list[Launch]:
    return [Launch(empty_kernel, grid, (x,), {}, 4, 1)]


@pytest.fixture
def product():
    """A launch that takes more shared memory than a kernel has unasked."""
    *_, product = launches(TRANSFORM, of_shapes((256, 256, 14, 14), (256, 256, 1, 1)), "forward", "one-pass")
    return product


def test_too_much_shared_memory_is_found(product, driver):
    driver.start([product])
    with pytest.raises(OutOfResources, match=r"shared memory, Required: 2\d+, Hardware limit: 232448"):
        driver.start([product._replace(stages=8)])


def test_shared_memory_that_was_not_asked_for_is_found(product, driver):
    options = {"num_warps": product.warps, "num_stages": product.stages, "enable_fp_fusion": True}
    arguments = tuple(map(Memory(driver.library).posed, product.arguments))
    start = partial(product.kernel[product.grid], *arguments, **product.constants, **options)
    ask = partial(driver.library.cuFuncSetAttribute, ctypes.c_void_p(start().function), MAX_DYNAMIC_SHARED_SIZE)
    assert ask((227 << 10) + 1) != 0 and ask(48 << 10) == 0
    with pytest.raises(RuntimeError, match="bytes of shared memory, allowed: the 49152 that were asked for"):
        start()
    assert ask(227 << 10) == 0
    start()


@pytest.mark.parametrize("grid, found", [
    ((1, 65536), r"grid\.y is 65536, allowed: 1 to 65535"),
    ((1, 1, 65536), r"grid\.z is 65536, allowed: 1 to 65535"),
    ((1 << 31,), "signed integer is greater than maximum"),
])  # fmt: skip
def test_a_grid_that_is_too_large_is_found(grid, found, driver):
    driver.start(planted((2**31 - 1,), ON_GPU))
    with pytest.raises((RuntimeError, OverflowError), match=found):
        driver.start(planted(grid, ON_GPU))


def test_a_grid_that_triton_takes_for_empty_is_found(driver):
    """The product of its axes is 0 in 32 bits: Triton starts nothing, and says nothing."""
    with pytest.raises(AssertionError, match="was started 0 times"):
        driver.start(planted((1 << 17, 1 << 15), ON_GPU))


def test_a_tensor_of_the_cpu_is_found(driver):
    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        empty_kernel[(1,)](torch.empty(1))


BFLOAT16 = 9  # CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
SOUND = {"address": 0, "swizzle": 3, "block": (64, 64), "shape": (64, 64), "strides": (64, 1)}
FAULTS = {
    "address": ({"address": 8}, "allowed: multiples of 16"),
    "stride": ({"strides": (36, 1), "shape": (64, 32)}, "stride 72 of axis 1, allowed: multiples of 16"),
    "stride of an axis": ({"strides": (96, 64, 1), "shape": (8, 8, 64), "block": (8, 8, 64)}, "does not divide"),
    "size": ({"shape": (0, 64)}, "size 0 of axis 1"),
    "box": ({"block": (512, 64)}, "box of 512 along axis 1, allowed: 1 to 256"),
    "narrow box": ({"block": (64, 4)}, "box of 8 bytes along axis 0, allowed: multiples of 16"),
    "box beyond the swizzle": ({"block": (64, 128)}, "box of 256 bytes along axis 0, allowed with swizzle 3: 128"),
    "tensor": ({"shape": (65, 64)}, "a tensor map of 8320 bytes in memory of 8192"),
    "large box": ({"block": (256, 8, 64), "shape": (1, 1, 64), "strides": (64, 64, 1)}, "a box of 262144 bytes"),
}


@pytest.mark.parametrize("changed, found", [({}, None), *FAULTS.values()], ids=["none", *FAULTS])
def test_a_tensor_map_that_breaks_a_rule_is_found(changed, found, driver):
    of = SOUND | changed
    start = Memory(driver.library).posed(ON_GPU).data_ptr() + of["address"]
    utils = driver.utils  # in Triton 3.6 the function has another name
    fill = getattr(utils, "fill_tma_descriptor_tiled", None) or utils.fill_tma_descriptor
    with nullcontext() if found is None else pytest.raises(RuntimeError, match=found):
        fill(start, of["swizzle"], 2, BFLOAT16, of["block"], of["shape"], of["strides"], 0)
