"""Every candidate × case × dtype against float64, and every tile once."""

from dataclasses import replace

import pytest
import torch
from cases import CASES, IDS, Case, enough, error
from parity import check
from where import CANDIDATES, DEVICE, OF_EVERY_KIND, STANDS_IN

from bcos_kernels.core import choice
from bcos_kernels.transform import TRANSFORM

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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


SMALLER = {
    "stem7x7": {"x": (1, 6, 7, 7)},
    "size17": {"x": (1, 17, 13, 13)},
    "depthwise": {"x": (1, 20, 7, 7), "weight": (20, 1, 5, 5)},
    "explain_depthwise": {"x": (1, 20, 7, 7), "weight": (20, 1, 5, 5)},
    "max_out": {"x": (1, 6, 5, 5)},
    "max_out_b1.5_groups": {"x": (1, 6, 4, 4)},
    "channels33": {"x": (1, 33, 3, 4), "weight": (33, 33, 1, 3)},
    "channels64": {"x": (1, 64, 3, 4), "weight": (64, 64, 1, 3)},
    "channels65": {"x": (1, 65, 3, 4), "weight": (65, 65, 1, 3)},
    "wide_groups": {"x": (1, 80, 3, 3), "weight": (80, 40, 1, 2)},
    "wide_1x1": {"x": (1, 140, 4, 5), "weight": (130, 140, 1, 1)},
    "linear_wide": {"x": (70, 140), "weight": (130, 140)},
    "linear_max_out": {"x": (35, 24)},
    "replicate_b1.5": {"x": (1, 4, 5, 5)},
    "circular_depthwise": {"x": (1, 8, 5, 5)},
    "conv3d_grouped": {"x": (1, 8, 3, 4, 4)},
    "conv3d_depthwise": {"x": (1, 10, 3, 3, 4)},
    "conv3d_circular": {"x": (1, 4, 3, 4, 4)},
}
"""What takes a stand-in longest, in shapes that still have several tiles where the usual ones have them."""

OF_ALL_KINDS = (
    "conv3x3", "conv1x1", "conv1x1_stride2", "stem7x7", "b1", "b1.25", "b1.5", "b2.5", "asymmetric", "dilated",
    "grouped_b1.5", "depthwise", "depthwise_multiplier", "max_out", "max_out_b1.5_groups", "bias_raw",
    "bias_unit_max_out", "weight_in_norm", "explain_b1.5", "explain_grouped_bias", "size1", "size2", "channels17",
    "channels65", "rows_of_one", "linear", "linear_b1.5", "linear_max_out", "linear_quirk", "linear_explain",
    "linear_wide", "resnext_stride2_b1.5", "max_out17", "depthwise_stride2_b3",
)  # fmt: skip
"""The cases of the candidates that share the forward or the products with the one-pass candidate, in a stand-in."""


OF_MORE_AXES = (
    "replicate_b1.5", "circular_depthwise", "circular_1x1", "conv1d_reflect", "conv3d_1x1", "conv3d_b1.5",
    "conv3d_dilated", "conv3d_grouped", "conv3d_depthwise", "conv3d_circular", "conv3d_raw",
)  # fmt: skip
"""The cases with three axes or with a padding mode that the vendor's candidate serves alone, in a stand-in."""


def planar(case: Case) -> bool:
    """Whether every candidate serves the case: those with products of our own see two axes, and pad with zeros."""
    return len(case.weight) < 5 and case.options.get("padding_mode", "zeros") == "zeros"


def here(case: Case) -> Case:
    return replace(case, **SMALLER.get(case.name, {})) if STANDS_IN else case


def combinations():
    """All of them on a GPU; a stand-in has fewer cases, and sees each with another dtype."""
    cases = {case.name: here(case) for case in (*CASES, *MORE)}
    for candidate in OF_EVERY_KIND:
        names = OF_ALL_KINDS if STANDS_IN and candidate != "one-pass" else tuple(cases)
        if candidate != "vendor":
            names = tuple(name for name in names if planar(cases[name]))
        elif STANDS_IN:
            names += OF_MORE_AXES
        for index, name in enumerate(names):
            for dtype in (DTYPES[(index + CANDIDATES.index(candidate)) % 3],) if STANDS_IN else DTYPES:
                yield pytest.param(cases[name], candidate, dtype, id=f"{name}-{candidate}-{str(dtype)[6:]}")


@pytest.mark.parametrize("case, candidate, dtype", list(combinations()))
def test_candidate(case, candidate, dtype, force, backend):
    force(candidate)
    # a rounding that turns a maximum to another filter shows in few inputs, and there far above all others
    usual = 9 if "max_out" in case.name and dtype != torch.float32 else len(SEEDS)
    seeds = range(usual if STANDS_IN else enough(usual, case, dtype))
    # beside the vendor's products the CUDA helpers take NCHW as well
    both = not STANDS_IN or (backend == "cuda" and candidate == "vendor")
    check(case, None, dtype, device=DEVICE, seeds=seeds, formats=(False, True) if both else (True,))


@pytest.mark.parametrize("name", ["conv3x3", "conv1x1_stride2", "grouped", "depthwise"])
def test_contiguous_memory_format(name, force):
    """NCHW inputs and OIHW weights are converted, and y comes back as NCHW."""
    force("one-pass")
    check(here(IDS[name]), None, torch.float32, device=DEVICE, seeds=SEEDS, formats=(False,))


EXACT = ("conv3x3", "conv1x1_stride2", "stem7x7", "asymmetric", "dilated", "grouped", "depthwise", "linear", "wide_1x1")


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("candidate", OF_EVERY_KIND)
def test_small_integers_are_exact(name, candidate, force):
    """Sums of small integers are exact in fp32, so l, dgrad and wgrad must be equal, not close."""
    force(candidate)
    dtype = torch.float32 if candidate == "vendor" else torch.bfloat16  # the vendor's product is rounded to its dtype
    case = here(IDS[name])
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
