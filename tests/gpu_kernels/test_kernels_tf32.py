"""Products of fp32 that may round their operands to tf32 round them to nearest.

A tensor core itself cuts off the bits that tf32 lacks, so that every product would be too small.
"""

import pytest
import torch
import torch.nn.functional as F
from cases import Case, error
from torch import Tensor
from where import DEVICE

from bcos_kernels.core import device
from bcos_kernels.functional import dynamic_alignment

PLAIN = {"b": 1.0, "normalize_weights": False}  # the products alone
CASES = [
    Case("conv3x3", (2, 24, 6, 5), (20, 24, 3, 3), {"padding": 1, **PLAIN}),
    Case("grouped", (2, 16, 5, 6), (16, 4, 3, 3), {"padding": 1, "groups": 4, **PLAIN}),
    Case("linear", (40, 72), (24, 72), PLAIN),
]


@pytest.fixture(autouse=True)
def _tf32(monkeypatch):
    """As if torch allowed it on the device of the test, whichever stands in for a GPU."""
    monkeypatch.setattr(device, "tf32", lambda *_, **__: True)


def rounded(t: Tensor) -> Tensor:
    """The nearest values of tf32, which has ten bits of mantissa; of two as near the larger one. In float64."""
    return ((t.detach().cpu().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32).double()


def product(case: Case, x: Tensor, weight: Tensor) -> Tensor:
    if case.is_linear:
        return F.linear(x, weight)
    return F.conv2d(x, weight, padding=case.options["padding"], groups=case.options.get("groups", 1))


@pytest.mark.parametrize("candidate", ["one-pass", "semi"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operands_are_rounded_to_nearest(case, candidate, force):
    force(candidate)
    x, weight = (t.detach().to(DEVICE).requires_grad_() for t in case.inputs(torch.float32, channels_last=True)[:2])
    y = case(x, weight)
    upward = torch.randn_like(y)
    found = y.detach(), *torch.autograd.grad(y, (x, weight), upward)
    near, wide = [rounded(t) for t in (x, weight, upward)], [t.detach().cpu().double() for t in (x, weight, upward)]
    nearest, exact = ([], [])
    for results, (a, b, up) in ((nearest, near), (exact, wide)):
        a, b = a.requires_grad_(), b.requires_grad_()
        out = product(case, a, b)
        results += [out.detach(), *torch.autograd.grad(out, (a, b), up)]
    for what, mine, true, full in zip(("y", "dx", "dw"), found, nearest, exact, strict=True):
        assert error(mine.cpu(), true) < 1e-5, what  # a tensor core rounds sums, too
        assert error(mine.cpu(), full) > 5e-5, f"{what}: nothing was rounded"


@pytest.mark.parametrize("norm", ["squash", "l2"])
def test_dynamic_weights_are_products_of_rounded_operands(norm):
    """Of whole numbers, which tf32 holds, with weights that it does not hold; and a bias is added as it is."""
    x, projection = (torch.randint(-2, 3, shape).float() for shape in ((2, 3, 9, 7), (20, 3, 3, 3)))
    weight, bias = torch.randn(3 * 9 * 18, 20, 1, 1) * 0.01, torch.randn(3 * 9 * 18)
    wanted = [t.to(DEVICE).requires_grad_() for t in (x, projection, weight, bias)]
    y = dynamic_alignment(*wanted, padding=1, norm=norm)
    others = x.double(), projection.double(), rounded(weight), bias.double()
    true = [t.requires_grad_() for t in others]
    exact = dynamic_alignment(*true, padding=1, norm=norm, backend="reference")
    assert error(y.cpu(), exact) < 1e-5
    dbias, of_bias = (torch.autograd.grad(t.sum(), given[3])[0] for t, given in ((y, wanted), (exact, true)))
    assert error(dbias.cpu(), of_bias) < 1e-3
