"""What exceeds a grid, an index or the shared memory of a GPU is left to a candidate that has room for it.

And what is predicted for GPUs of which nothing is listed.
"""

from dataclasses import replace

import pytest
import torch

from bcos_kernels.core import choice
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.gpu import cost
from bcos_kernels.transform import TRANSFORM, triton
from bcos_kernels.transform.call import of_shapes

PROGRAMS = 65535
"""The most of a grid's second and third axis."""


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "backend, more, served",
    [("cuda", 0, True), ("cuda", 1, False), ("triton", 1, True)],
    ids=["cuda's most", "one more", "triton"],
)
def test_depthwise_layers_with_more_channels_than_a_grid_has(backend, direction, more, served):
    """A block has 64 of them, on the second axis; the tiles of Triton lie on the first."""
    channels = 64 * PROGRAMS + more
    call = of_shapes((1, channels, 3, 3), (channels, 1, 3, 3), groups=channels)
    names = {candidate.name for candidate, _ in choice.ways(TRANSFORM, backend, call, direction)}
    assert ("one-pass" in names) == served and "vendor" in names


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("options", [{}, {"out_dtype": torch.float32}, {"b": 1.0}, {"dtype": torch.float32}], ids=str)
def test_products_that_form_u_fit_the_shared_memory_of_every_gpu(arch, options):
    """The copies of grad, of y and of the other operand, of every step but one."""
    call = of_shapes((64, 256, 14, 14), (256, 256, 3, 3), padding=(1, 1), arch=arch, **options)
    most = {"sm_80": 163, "sm_90": 227, "sm_100": 227}.get(arch, 99) << 10
    found = [*triton.PRODUCTS.tiles(call, "training", False), triton.PRODUCTS.wgrad_tile(call, False)]
    for tile in found:
        of_u = tile.m * call.out_dtype.itemsize * (1 if call.power == 1 else 2)
        assert (tile.stages - 1) * tile.k * (of_u + tile.n * call.dtype.itemsize) <= most, tile
    given = triton.PRODUCTS.tiles(call, "training", True)
    assert arch != "sm_90" or found[0].m * found[0].n == max(tile.m * tile.n for tile in given)


@pytest.mark.parametrize(
    "arch, like",
    [("sm_86", "sm_80"), ("sm_89", "sm_80"), ("sm_120", "sm_80"), ("sm_103", "sm_100"), ("gfx950", "gfx942")],
)
def test_an_unlisted_gpu_counts_as_the_listed_one_that_multiplies_as_it_does(arch, like):
    """A workstation's GPU multiplies by the instructions of Ampere, of which a Hopper reaches a small share."""
    assert cost.rates(arch) == cost.rates(like) != cost.rates("sm_90")
    call = of_shapes((64, 256, 14, 14), (256, 256, 3, 3), padding=(1, 1), arch=arch)
    for candidate in TRANSFORM.candidates_of("cuda,triton"):
        for direction in DIRECTIONS:
            if candidate.can_serve(call, direction) and not candidate.name.startswith("tma"):
                assert candidate.cost(call, direction) == candidate.cost(replace(call, arch=like), direction)
