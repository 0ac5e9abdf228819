"""Every candidate × case × dtype against float64, and every tile once."""

from dataclasses import replace

import pytest
import torch
from cases import CANDIDATES, CASES, IDS, Case, error
from parity import check
from where import DEVICE, STANDS_IN

from bcos_kernels.core import choice
from bcos_kernels.transform import TRANSFORM

SERVED = [case for case in CASES if case.options.get("padding_mode", "zeros") == "zeros"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# a seed takes the interpreter half a second
SEEDS = range(3) if STANDS_IN else range(5)

MORE = [
    Case("resnext", (2, 32, 6, 6), (32, 4, 3, 3), {"padding": 1, "groups": 8}),
    Case("resnext_stride2_b1.5", (2, 32, 7, 7), (64, 4, 3, 3), {"padding": 1, "groups": 8, "stride": 2, "b": 1.5}),
    Case("wide_groups", (1, 80, 5, 5), (80, 40, 3, 3), {"padding": 1, "groups": 2}),
    Case("stride3", (2, 16, 10, 10), (8, 16, 3, 3), {"padding": 1, "stride": 3}),
    Case("max_out17", (2, 6, 4, 4), (34, 6, 1, 1), {"max_out": 17}),
    Case("max_out5", (2, 6, 5, 5), (15, 6, 3, 3), {"max_out": 5, "padding": 1}),
    Case("depthwise_stride2_b3", (2, 9, 8, 8), (9, 1, 3, 3), {"padding": 1, "groups": 9, "stride": 2, "b": 3}),
    Case("depthwise_bias_raw", (1, 9, 6, 6), (9, 1, 3, 5), {"groups": 9, "normalize_weights": False}, True),
    Case("keeps_epsilon", (5, 24), (7, 24), {"exact_two": False}),
]


LONG = ("stem7x7", "size17", "channels33", "channels64", "channels65", "wide_1x1", "linear_wide", "wide_groups")
"""In the interpreter one seed of them takes as long as three of another."""


def dtypes(index: int, candidate: str):
    """All of them on a GPU; in the interpreter each candidate of a case sees another one."""
    if not STANDS_IN:
        return DTYPES
    return (DTYPES[(index + CANDIDATES.index(candidate)) % 3],)


COMBINATIONS = [
    pytest.param(case, candidate, dtype, id=f"{case.name}-{candidate}-{str(dtype)[6:]}")
    for index, case in enumerate((*SERVED, *MORE))
    for candidate in CANDIDATES
    for dtype in dtypes(index, candidate)
]


@pytest.mark.parametrize("case, candidate, dtype", COMBINATIONS)
def test_candidate(case, candidate, dtype, force, backend):
    force(candidate)
    # a rounding that turns a maximum to another filter shows in few inputs, and there far above all others
    seeds = range(9) if "max_out" in case.name and dtype != torch.float32 else SEEDS
    # the interpreter is slow; the other candidates share forward or products with what is tried more
    shared = candidate != "one-pass" and len(case.x) == 4 and seeds == SEEDS
    if STANDS_IN and backend == "triton" and (case.name in LONG or shared):
        seeds = range(1)
    # beside the vendor's products the CUDA helpers take NCHW as well
    both = not STANDS_IN or (backend == "cuda" and candidate == "vendor")
    check(case, None, dtype, device=DEVICE, seeds=seeds, formats=(False, True) if both else (True,))


@pytest.mark.parametrize("name", ["conv3x3", "conv1x1_stride2", "grouped", "depthwise"])
def test_contiguous_memory_format(name, force):
    """NCHW inputs and OIHW weights are converted, and y comes back as NCHW."""
    force("one-pass")
    check(IDS[name], None, torch.float32, device=DEVICE, seeds=SEEDS, formats=(False,))


EXACT = ("conv3x3", "conv1x1_stride2", "stem7x7", "asymmetric", "dilated", "grouped", "depthwise", "linear", "wide_1x1")


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("candidate", CANDIDATES)
def test_small_integers_are_exact(name, candidate, force):
    """Sums of small integers are exact in fp32, so l, dgrad and wgrad must be equal, not close."""
    force(candidate)
    dtype = torch.float32 if candidate == "vendor" else torch.bfloat16  # the vendor's product is rounded to its dtype
    case = IDS[name]
    case = replace(case, options={**case.options, "b": 1, "normalize_weights": False})
    gen = torch.Generator().manual_seed(0)
    inputs = [torch.randint(-3, 4, shape, generator=gen).to(dtype) for shape in (case.x, case.weight)]
    ours = [t.to(DEVICE).requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    y, truth = case(*ours, out_dtype=torch.float32), case.naive(*exact)
    grad = torch.randint(-3, 4, y.shape, generator=gen).float()
    found = (y, *torch.autograd.grad(y, ours, grad.to(DEVICE)))
    for value, expected in zip(found, (truth, *torch.autograd.grad(truth, exact, grad.double())), strict=True):
        assert torch.equal(value.cpu(), expected.to(value.dtype))


TILED = {
    "conv": (Case("conv", (1, 72, 5, 5), (136, 72, 3, 3), {"padding": 1}), torch.bfloat16),
    "linear": (Case("linear", (150, 70), (130, 70)), torch.float32),
    "grouped": (Case("grouped", (1, 32, 9, 9), (64, 4, 3, 3), {"padding": 1, "groups": 8}), torch.float32),
    "max_out": (Case("max_out", (2, 20, 9, 9), (60, 20, 1, 1), {"max_out": 3}), torch.bfloat16),
}


@pytest.mark.parametrize("direction", ["forward", "training"])
@pytest.mark.parametrize("name", TILED)
def test_every_tile(name, direction, force, backend):
    """A tile changes the order of sums, never more: all agree with the first to rounding."""
    case, dtype = TILED[name]
    candidate = "one-pass" if direction == "forward" else "semi"
    x, weight, _ = (None if t is None else t.detach().to(DEVICE).requires_grad_() for t in case.inputs(dtype))
    with choice.forced(None) as chosen:
        y = case(x, weight)
        torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    ways = choice.ways(TRANSFORM, backend, chosen[direction][0], direction)
    tiles = [tile for offered, tile in ways if offered.name == candidate]
    assert len(set(tiles)) == len(tiles) >= (1 if backend == "cuda" and name != "conv" else 2)
    results = []
    for tile in tiles:
        force(candidate, tile if direction == "forward" else None)
        y = case(x, weight)
        force(candidate, tile)
        results.append((y,) if direction == "forward" else torch.autograd.grad(y, (x, weight), torch.ones_like(y)))
    for result in results[1:]:
        for value, first in zip(result, results[0], strict=True):
            assert error(value, first) < 4 * torch.finfo(dtype).eps
