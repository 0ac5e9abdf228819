"""The Triton kernels of dynamic alignment compiled for GPUs that need not be there: resources, races, wide offsets.

All calls of Hopper, and of the three other GPUs the first one; ``make thorough`` has all of theirs.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from several_kernels import WHOLE, examined, of_every_gpu
from triton_ir import Pipeline, wrapping_products

from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.dynamic_alignment import DYNAMIC_ALIGNMENT, Call
from bcos_kernels.gpu import aot
from bcos_kernels.gpu.cost import LAUNCH
from bcos_kernels.gpu.launches import launches
from benchmarks import alignments

pytestmark = pytest.mark.slow


def calls(arch: str) -> Iterator[Call]:
    """What needs most registers for every GPU, and all ways through the kernels for one."""
    small = list(alignments.calls("coda_cifar10", 256, arch, torch.bfloat16))
    large = list(alignments.calls("coda_imagenet", 32, arch, torch.bfloat16))
    yield from (small[3], large[4], large[8])
    if arch in ("sm_80", "sm_90"):
        yield from (replace(call, dtype=torch.float32) for call in (small[3], large[8]))
    if arch == "sm_90":
        yield from (replace(call, dtype=torch.float16) for call in (small[3], large[8]))
        yield replace(large[5], dtype=torch.float32, tf32=True)
        yield replace(small[0], bias=False)
        yield small[8]
        yield replace(large[8], x_shape=(2, *large[8].x_shape[1:]))  # few pixels
        yield with_norm("l2", small[1])
        yield from (with_norm("l1", replace(call, dtype=torch.float16)) for call in (small[1], large[8]))
        yield from (with_norm("l1", replace(small[3], dtype=dtype)) for dtype in (torch.float32, torch.float64))
        yield replace(large[8], dtype=torch.float64)
    yield with_norm("l1", large[8])


def with_norm(norm: str, call: Call) -> Call:
    return replace(call, spec=replace(call.spec, norm=norm))


def examine(what: aot.Specialisation) -> tuple[list[str], list[str], list[str], str]:
    """In a worker: what exceeds the GPU, races, offsets in 32 bits, and the products' instruction."""
    kernel = aot.compiled(what)
    unit = re.search("wgmma|mma.sync", kernel.assembly)
    races = [] if what.arch == "gfx942" else Pipeline(kernel.ttgir).races  # whose products wait
    return kernel.excesses(), races, wrapping_products(kernel.ttir), unit[0] if unit else ""


@pytest.fixture(scope="module")
def kernels(request) -> dict[aot.Specialisation, tuple[str, tuple[list[str], list[str], list[str], str]]]:
    """Every distinct kernel that the calls start, or the first call: the call that starts it, and what was found."""
    arch, first = request.param
    chosen = {}
    for call in itertools.islice(calls(arch), 1 if first else None):
        for direction in ("forward", "training"):
            for started in launches(DYNAMIC_ALIGNMENT, call, direction):
                chosen.setdefault(aot.specialise(started, arch), f"{call.words()} {direction} {arch}")
    return {what: (chosen[what], result) for what, result in zip(chosen, examined(examine, chosen), strict=True)}


@pytest.mark.parametrize("kernels", WHOLE.values(), indirect=True)
def test_every_kernel_is_among_them(kernels):
    names = ("fwd", "upstream", "du", "patches", "dh", "dweight", "dh_signs", "dweight_signs")
    assert {what.kernel for what in kernels} == {f"alignment_{name}_kernel" for name in names}


@of_every_gpu
def test_no_kernel_spills_or_takes_more_than_there_is(kernels):
    excessive = {(what.kernel, origin): found[0] for what, (origin, found) in kernels.items() if found[0]}
    assert kernels and not excessive


@of_every_gpu
def test_no_buffer_is_refilled_while_a_product_reads_it(kernels):
    racing = {(what.kernel, origin): found[1] for what, (origin, found) in kernels.items() if found[1]}
    assert not racing


@of_every_gpu
def test_no_offset_is_formed_in_32_bits(kernels):
    wrapping = {(what.kernel, origin): found[2] for what, (origin, found) in kernels.items() if found[2]}
    assert not wrapping


@of_every_gpu
def test_products_run_on_tensor_cores(kernels):
    products = ("alignment_fwd_kernel", "alignment_du_kernel", "alignment_dh_kernel", "alignment_dweight_kernel")
    for what, (origin, (*_, unit)) in kernels.items():
        if (
            what.kernel in products
            and "float32" not in origin
            and "float64" not in origin
            and what.arch in ("sm_80", "sm_90")
        ):
            large = what.arch == "sm_90" and dict(what.constants)["BM"] == 64
            assert unit == ("wgmma" if large else "mma.sync"), (what, origin)


def test_the_cost_is_near_the_floor():
    """What the cost model predicts of an H200, where a GPU has enough to do."""
    for name, most in (("coda_cifar10", (1.6, 2.1, 2.2)), ("coda_imagenet", (1.6, 1.9, 2.0))):
        *_, (_, total) = alignments.rows(name, alignments.IMAGES[name], "sm_90", torch.bfloat16)
        for direction, allowed in zip(DIRECTIONS, most, strict=True):
            ours, floor = total[direction]
            assert 1 < ours / floor < allowed, (name, direction)


def test_the_cost_counts_the_kernels_that_are_started():
    """A call without work costs their starts alone. Torch's own are among them: the fold, and in training five more."""
    (candidate,) = DYNAMIC_ALIGNMENT.candidates_of("triton")
    call = replace(next(alignments.calls("coda_cifar10", 1, "sm_90", torch.bfloat16)), x_shape=(1, 1, 3, 3))
    for norm, own in (("squash", 5), ("l1", 0)):
        call = with_norm(norm, call)
        for direction, others in (("forward", 0), ("explanation", 1), ("training", 1 + own)):
            starts = len(launches(DYNAMIC_ALIGNMENT, call, direction)) + others
            assert starts * LAUNCH < candidate.cost(call, direction) < (starts + 1) * LAUNCH, direction


def test_the_command_prints_every_layer(capsys):
    printed = set()
    for backend in ("triton", "cuda"):
        assert alignments.main(["--arch", "sm_80", "--dtype", "fp32", "--images", "2", "--backend", backend]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert sum(" to " in line for line in shown) == 18 and sum("all layers" in line for line in shown) == 2
        assert max(map(len, shown[1:])) <= 80
        printed.update(line for line in shown if "all layers" in line)
    assert len(printed) == 4
    with pytest.raises(SystemExit):
        alignments.main(["--images", "0"])
    assert "--images: 0: must be at least 1" in capsys.readouterr().err


def test_the_dynamic_weights_are_never_in_memory():
    """No tensor of a launch is as large as a tenth of them."""
    call = list(alignments.calls("coda_imagenet", 32, "sm_90", torch.bfloat16))[4]
    values = call.pixels * call.patch * call.outputs
    for direction in DIRECTIONS:
        for started in launches(DYNAMIC_ALIGNMENT, call, direction):
            assert all(t.numel() < values / 10 for t in started.arguments if isinstance(t, torch.Tensor))
