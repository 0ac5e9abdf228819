"""The sampled candidates: 1×1 convolutions with a stride, by others on copies of the pixels that are seen."""

from dataclasses import replace

import pytest
import torch
from cases import Case
from parity import check
from where import BACKENDS, DEVICE, SAMPLED, STANDS_IN

from bcos_kernels.core import choice
from bcos_kernels.transform import TRANSFORM
from bcos_kernels.transform.call import of_shapes

CASES = (
    Case("odd sizes", (2, 24, 7, 5), (16, 24, 1, 1), {"stride": 2}),
    Case("two strides", (2, 16, 6, 7), (24, 16, 1, 1), {"stride": (3, 2), "b": 1.5}),
    Case("one axis", (2, 16, 4, 5), (8, 16, 1, 1), {"stride": (1, 2)}, True),
    Case("groups", (1, 32, 5, 5), (16, 8, 1, 1), {"stride": 2, "groups": 4}),
    Case("max_out", (1, 16, 5, 6), (16, 16, 1, 1), {"stride": 2, "max_out": 2}),
    Case("detached", (2, 16, 5, 5), (8, 16, 1, 1), {"stride": 2, "detach": True}),
    Case("three axes", (1, 8, 3, 5, 4), (8, 8, 1, 1, 1), {"stride": (2, 2, 1)}),
)
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def combinations():
    """Every case that a candidate serves, with one dtype each."""
    for candidate in SAMPLED:
        for number, case in enumerate(CASES):
            dtype = DTYPES[number % 3]
            if serves(candidate, case, dtype):
                yield pytest.param(case, candidate, dtype, id=f"{case.name}-{candidate}-{str(dtype)[6:]}")


def described(case: Case, dtype: torch.dtype):
    axes, options = len(case.weight) - 2, dict(case.options)
    stride = options.pop("stride")
    options["stride"] = (stride,) * axes if isinstance(stride, int) else stride
    where = {"device": DEVICE, "arch": "none" if STANDS_IN else "sm_90", "dtype": dtype}
    return of_shapes(case.x, case.weight, bias=case.bias, **where, **options)


def served(candidate: str, call, backends: str = ",".join(BACKENDS)) -> list[str]:
    """The directions of the call that the candidate serves by one of the backends."""
    found = [c for c in TRANSFORM.candidates_of(backends) if c.name == candidate]
    return [d for d in ("forward", "explanation", "training") if any(c.can_serve(call, d) for c in found)]


def serves(candidate: str, case: Case, dtype: torch.dtype) -> bool:
    return bool(served(candidate, described(case, dtype)))


@pytest.mark.parametrize("case, candidate, dtype", list(combinations()))
def test_against_float64(case, candidate, dtype, backend):
    expected = served(candidate, described(case, dtype), backend)
    if not expected:
        pytest.skip(f"{backend} has no candidate {candidate} for it")
    with choice.forced(candidate) as chosen:
        check(case, None, dtype, device=DEVICE, seeds=range(3), formats=(False, True))
    assert {d for d, (_, c) in chosen.items() if c.candidate.name == candidate} == {d for d in expected if d in chosen}


@pytest.mark.parametrize("candidate", SAMPLED)
def test_pixels_that_are_not_seen_reach_nothing(candidate, backend):
    """NaN there reaches neither y nor dw, and dx is exactly 0 there."""
    case = replace(CASES[0], x=(2, 16, 5, 5), weight=(8, 16, 1, 1))
    if not served(candidate, described(case, torch.bfloat16), backend):
        pytest.skip(f"{backend} has no candidate {candidate} for it")
    x, weight, _ = case.inputs(torch.bfloat16, channels_last=True)
    poisoned = x.detach().clone()
    poisoned[:, :, 1::2], poisoned[..., 1::2] = float("nan"), float("nan")
    found = []
    with choice.forced(candidate) as chosen:
        for given in (x, poisoned):
            leaves = given.detach().to(DEVICE).requires_grad_(), weight.detach().to(DEVICE).requires_grad_()
            y = case(*leaves, None)
            found.append((y, *torch.autograd.grad(y, leaves, torch.ones_like(y))))
    assert {c.candidate.name for _, c in chosen.values()} == {candidate}
    assert all(map(torch.equal, *found))
    dx = found[0][1]
    assert dx[:, :, ::2, ::2].all() and not dx[:, :, 1::2].any() and not dx[..., 1::2].any()


def test_only_strided_convolutions_of_one_pixel_are_served():
    candidates = [c for c in TRANSFORM.candidates if c.name.startswith("sampled-")]
    assert {str(c) for c in candidates} == {
        "triton sampled-tma", "cuda sampled-graph", "cuda sampled-vendor", "triton sampled-vendor",
    }  # fmt: skip
    strided = of_shapes((2, 16, 8, 8), (16, 16, 1, 1), stride=(2, 2))
    assert all(c.can_serve(strided, "training") for c in candidates)
    for shape, options in (
        ((16, 16, 1, 1), {}),
        ((16, 16, 3, 3), {"stride": (2, 2)}),
        ((16, 16, 1, 1), {"stride": (2, 2), "padding": (1, 0)}),
        ((16, 16, 1, 1), {"stride": (2, 2), "border": (1, 1, 1, 1)}),
    ):
        call = of_shapes((2, 16, 8, 8), shape, **options)
        assert not any(c.can_serve(call, "training") for c in candidates), options
