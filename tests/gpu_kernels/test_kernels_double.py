"""fp64 on the GPU kernels, which agree with the reference to the last places.

A sum, an epsilon or a count that was fp32 on the way would show: also in patches near zero, where an epsilon decides.
"""

from functools import partial

import pytest
import torch
from cases import IDS, Case
from coda_families import theirs
from norm_cases import BY_NAME, results
from second_checks import check_layer, check_norm, kernels_used  # noqa: F401
from test_alignment_kernels import moved
from test_dynamic_alignment import outcome, tensors

from bcos_kernels.functional import dynamic_alignment

AGREE = 1e-14
"""The most that two orders of sums may differ by, relative to the largest value; fp32 anywhere differs by 1e-8."""
SIZES = {"usual": 1.0, "near zero": 1e-4}
"""The standard deviation of x. Beside 1e-4, the norm_eps of 1e-6 is larger than a sum of squares."""
MORE = (
    Case("b_and_epsilons", (2, 4, 6, 6), (6, 4, 3, 3), {"b": 1.7, "norm_eps": (3e-7, 2e-5), "cos_eps": 7e-5}),
    Case("keeps_epsilon", (5, 24), (7, 24), {"exact_two": False}),
    Case("resnext", (2, 32, 6, 6), (32, 4, 3, 3), {"padding": 1, "groups": 8, "b": 2.5}),
)
LAYERS = {case.name: case for case in MORE} | {
    name: IDS[name]
    for name in (
        "conv3x3", "conv1x1_stride2", "b1", "b1.5", "asymmetric", "dilated", "grouped_b1.5", "depthwise_multiplier",
        "max_out_b1.5_groups", "bias_raw", "bias_unit_max_out", "weight_in_norm", "explain_b1.5", "linear",
        "linear_b1.5", "linear_max_out", "conv1d_reflect", "circular_depthwise", "conv3d_b1.5",
        "conv3d_circular",
    )
}  # fmt: skip


def agree(found, expected) -> None:
    for mine, truth in zip(found, expected, strict=True):
        assert mine.dtype == truth.dtype == torch.float64
        difference = (mine.detach().cpu() - truth.detach()).abs()
        assert not truth.numel() or difference.max() <= AGREE * truth.detach().abs().max()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name, size, backend, device):
    case, outcomes = LAYERS[name], []
    x, *rest = case.inputs(torch.float64, channels_last=size == "usual")
    for used, where in ((backend, device), ("reference", "cpu")):
        moved = [t.detach().to(where).requires_grad_() for t in (x * SIZES[size], *rest) if t is not None]
        y = case(*moved, backend=used)
        upward = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(where)
        outcomes.append((y, *torch.autograd.grad(y, moved, upward)))
    agree(*outcomes)


@pytest.mark.parametrize("b", [1.5, 2.0])
def test_b_as_a_tensor(b, backend, device):
    """Its value stays fp64, and so does cos_eps beside it."""
    x, weight, _ = IDS["conv3x3"].inputs(torch.float64)
    outcomes = []
    for used, where in ((backend, device), ("reference", "cpu")):
        exponent = torch.tensor(b + 1e-9 * (b != 2), dtype=torch.float64)
        moved = [t.detach().to(where).requires_grad_() for t in (x * 1e-3, weight, exponent)]
        y = IDS["conv3x3"](*moved[:2], b=moved[2], cos_eps=3e-3, exact_two=b != 2, backend=used)
        outcomes.append((y, *torch.autograd.grad(y.sin().sum(), moved)))
    agree(*outcomes)


@pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
@pytest.mark.parametrize(
    "name", ["batch", "batch_last", "batch_given", "all", "group_last", "position", "position_last"]
)
def test_a_norm(name, centered, backend, device):
    """Also of small values, beside whose variance eps counts."""
    case = BY_NAME[name]
    for size in SIZES.values():
        tensors = case.tensors(torch.float64, centered) | {"x": case.tensors(torch.float64, centered)["x"] * size}
        options = {"eps": 1.7e-7}
        found = results(case, tensors, centered, device, backend=backend, **options)
        expected = results(case, tensors, centered, backend="reference", **options)
        agree((found[what] for what in expected), expected.values())


@pytest.mark.parametrize("mode", ["early", "late"])
@pytest.mark.parametrize("name", ["conv3x3", "linear_b1.5", "grouped_b1.5", "conv3d_b1.5", "bias_unit_max_out"])
def test_a_second_derivative_of_a_layer(name, mode, backend, device, kernels_used):  # noqa: F811
    check_layer(name, mode, mode == "late", torch.float64, backend, device, kernels_used)


@pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
@pytest.mark.parametrize("name", ["batch", "group_last", "position_last", "token"])
def test_a_second_derivative_of_a_norm(name, centered, backend, device, kernels_used):  # noqa: F811
    check_norm(name, "late", centered, True, torch.float64, backend, device, kernels_used)


@pytest.mark.parametrize("padding, b", [(1, 2.0), (0, 1.5)])
def test_rows_of_the_dynamic_linear_map(padding, b, backend, device):
    x, weight, _ = IDS["conv3x3"].inputs(torch.float64)
    outcomes = []
    for used, where in ((backend, device), ("reference", "cpu")):
        x, weight = (t.detach().to(where).requires_grad_() for t in (x, weight))
        y = partial(IDS["conv3x3"], backend=used)(x, weight, padding=padding, b=b, detach=True)
        rows = torch.cos(torch.arange(3 * y.numel(), dtype=torch.float64)).view(3, *y.shape).to(where)
        outcomes.append((torch.func.vmap(lambda row, y=y, x=x: torch.autograd.grad(y, x, row)[0])(rows),))
    agree(*outcomes)


@pytest.mark.parametrize("name", ["plain", "l1", "l2", "no_bias", "asymmetric", "groups", "explain"])
def test_dynamic_alignment(name, backend):
    given, options = tensors(name, torch.float64)
    found = outcome(dynamic_alignment, moved(given), options | {"backend": backend})
    expected = outcome(theirs, given, options)
    agree((found[what] for what in expected), expected.values())
