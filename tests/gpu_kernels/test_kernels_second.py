"""Second derivatives by the GPU kernels: losses on explanations, of layers and of norms."""

from functools import partial

import pytest
import torch
from cases import IDS, Case, enough, error
from second_checks import MODES, check_layer, check_norm, kernels_used, outcome, test_zero_rows_and_filters  # noqa: F401
from test_norm_kernels import small_tiles
from torch.autograd import grad

from bcos_kernels.core.env import INTERPRETED
from bcos_kernels.functional import norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYERS = (
    "conv3x3", "conv1x1", "conv1x1_stride2", "b1", "b1.25", "b2.5", "asymmetric", "dilated", "grouped", "grouped_b1.5",
    "depthwise", "depthwise_multiplier", "max_out", "max_out_b1.5_groups", "bias_raw", "bias_raw_b1.25",
    "bias_unit_max_out", "linear", "linear_b1", "linear_b1.5", "linear_max_out", "linear_bias_raw", "linear_late_norm",
    "linear_wide", "circular_depthwise", "conv1d", "conv3d", "conv3d_b1.5", "conv3d_circular",
)  # fmt: skip
NORMS = (
    "batch", "batch_last", "batch_given_last", "all_last", "group", "group_last", "position", "position_last", "token",
)  # fmt: skip
FEW = (
    "conv3x3", "conv1x1_stride2", "b1", "grouped_b1.5", "depthwise_multiplier", "bias_unit_max_out", "linear_b1.5",
    "linear_wide", "circular_depthwise", "conv3d_b1.5", "conv3d_circular",
)  # fmt: skip
"""The layers that Triton's interpreter sees, of all kinds."""


def layers():
    """In each mode with another dtype; in Triton's interpreter, which is slow, few of them with one mode each."""
    for i, name in enumerate(FEW if INTERPRETED else LAYERS):
        for j, mode in enumerate(MODES):
            if not INTERPRETED or j == (i + 2) % 3:
                ordinary, dtype = (i + j) % 2 == 0, DTYPES[(i + j + i // 3) % 3]
                yield pytest.param(name, mode, ordinary, dtype, id=f"{name}-{mode}-{str(dtype)[6:]}")


def norms():
    for i, name in enumerate(NORMS):
        for centered in (False, True):
            for j, mode in enumerate(MODES[1:]):
                if not INTERPRETED or j == (i + i // 3) % 2:
                    ordinary, dtype = (i + j + centered) % 2 == 0, DTYPES[(i + j) % 3]
                    words = f"{name}-{'' if centered else 'un'}centered-{mode}-{str(dtype)[6:]}"
                    yield pytest.param(name, mode, centered, ordinary, dtype, id=words)


@pytest.mark.parametrize("case, mode, ordinary, kind", list(layers()))
def test_error_of_a_layer(case, mode, ordinary, kind, backend, device, kernels_used, force):  # noqa: F811
    force("vendor")  # the forward, too, which is the quickest in a stand-in
    seeds = 3 if INTERPRETED else enough(5, IDS[case], kind)
    check_layer(case, mode, ordinary, kind, backend, device, kernels_used, seeds)


@pytest.mark.parametrize("case, mode, centered, ordinary, kind", list(norms()))
def test_error_of_a_norm(case, mode, centered, ordinary, kind, backend, device, kernels_used):  # noqa: F811
    check_norm(case, mode, centered, ordinary, kind, backend, device, kernels_used, seeds=3)


@pytest.mark.parametrize("order", ["fixed", "free", "fixed then free", "free then fixed"])
@pytest.mark.parametrize("name", ["linear", "linear_b1.5"])
def test_late_mode_toggled_between_the_orders(name, order, backend, device, force):
    """The gradients of n and l join a backward whose scale is a constant, or not, whatever that of the first was."""
    force("vendor")
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float32)
    first, second = {"fixed": (1, 1), "free": (0, 0), "fixed then free": (1, 0), "free then fixed": (0, 1)}[order]
    results = []
    for used, where, dtype in ((backend, device, torch.float32), ("reference", "cpu", torch.float64)):
        inputs = [t.detach().to(where, dtype).abs().requires_grad_() for t in (x, weight)]  # no l is near 0
        state = {"fixed_weights": False}
        y = case(*inputs, detach=state, backend=used)
        state["fixed_weights"] = bool(first)
        (dx,) = grad(y.square().sum(), inputs[0], create_graph=True)
        state["fixed_weights"] = bool(second)
        results.append([t.cpu() for t in grad(dx.sin().sum() + y.square().sum(), inputs)])
    assert all(error(mine, yours) < 1e-5 for mine, yours in zip(*results, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [
    Case("batch0", (0, 6, 5, 5), (5, 6, 3, 3), {"padding": 1}),
    Case("depthwise0", (0, 6, 5, 5), (6, 1, 3, 3), {"groups": 6}),
    Case("max_out0", (0, 8), (6, 8), {"max_out": 2, "b": 1.5}),
], ids=lambda c: c.name)  # fmt: skip
def test_empty_batch(case, mode, backend, device):
    """A grid of no programs is never started; the weight's gradient is zero, not what was in memory."""
    x, weight, _ = case.inputs(torch.float32)
    inputs = {"x": x.to(device), "weight": weight.to(device)}
    found = outcome(
        partial(case, backend=backend), inputs, mode, True, torch.randn_like(case(x, weight, backend="reference"))
    )
    assert torch.equal(found["dweight of the loss"], torch.zeros_like(weight))
    assert found["dx of the loss"].shape == x.shape and found["dupward of the loss"].numel() == 0


@pytest.mark.parametrize("over", ["batch", "group", "position"])
def test_empty_batch_of_a_norm(over, backend, device, kernels_used):  # noqa: F811
    inputs = {"x": torch.randn(0, 4, 3, 3, device=device), "weight": torch.randn(4, device=device)}
    function = partial(norm, over=over, groups=2 if over == "group" else 1, backend=backend)
    found = outcome(function, inputs, "late", True, torch.randn(0, 4, 3, 3))
    assert kernels_used == [True] and not found["dweight of the loss"].any()
    assert found["dx of the loss"].shape == (0, 4, 3, 3)


@pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
@pytest.mark.parametrize("name", ["batch", "group_last", "position", "token"])
def test_several_tiles_and_parts_of_a_norm(name, centered, backend, device, kernels_used, monkeypatch):  # noqa: F811
    if backend != "triton":
        pytest.skip("the tiles that this test makes small are Triton's")
    for whole in (64, 16):
        small_tiles(monkeypatch, whole)
        check_norm(name, "late", centered, True, torch.float32, backend, device, kernels_used, seeds=1)
