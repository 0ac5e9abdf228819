"""Second derivatives by the GPU kernels: losses on explanations, of layers and of norms."""

import pytest
import torch
from second_checks import *  # noqa: F403  # what all backends share
from second_checks import MODES, check_layer, check_norm, test_zero_rows_and_filters
from test_norm_kernels import small_tiles
from where import EMULATED, STANDS_IN

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASE_NAMES = (
    "conv3x3", "conv1x1", "conv1x1_stride2", "b1", "b1.25", "b2.5", "asymmetric", "dilated", "grouped", "grouped_b1.5",
    "depthwise", "depthwise_multiplier", "max_out", "max_out_b1.5_groups", "bias_raw", "bias_raw_b1.25",
    "bias_unit_max_out", "linear", "linear_b1", "linear_b1.5", "linear_max_out", "linear_bias_raw", "linear_late_norm",
    "linear_wide",
)  # fmt: skip
NORMS = (
    "batch", "batch_last", "batch_given_last", "all_last", "group", "group_last", "position", "position_last", "token",
)  # fmt: skip
FEW = (
    "conv3x3", "conv1x1_stride2", "b1", "grouped_b1.5", "depthwise_multiplier", "bias_unit_max_out", "linear_b1.5",
    "linear_wide",
)  # fmt: skip
"""The layers that Triton's interpreter sees, of all kinds."""

if STANDS_IN:
    del test_error_of_a_layer, test_error_of_a_norm  # noqa: F821

    def layers():
        """With one dtype each; in Triton's interpreter, which is slow, few of them with one mode each."""
        for i, name in enumerate(CASE_NAMES if EMULATED else FEW):
            for j, mode in enumerate(MODES):
                if EMULATED or j == (i + 2) % 3:
                    yield name, mode, (i + j) % 2 == 0, DTYPES[(i + j + i // 3) % 3]

    def norms():
        for i, name in enumerate(NORMS):
            for centered in (False, True):
                for j, mode in enumerate(MODES[1:]):
                    if EMULATED or j == (i + i // 3) % 2:
                        yield name, mode, centered, (i + j + centered) % 2 == 0, DTYPES[(i + j) % 3]

    @pytest.mark.parametrize("case, mode, ordinary, kind", list(layers()))
    def test_layers(case, mode, ordinary, kind, backend, device, kernels_used, force):
        force("vendor")  # the forward, too, which is the quickest in a stand-in
        check_layer(case, mode, ordinary, kind, backend, device, kernels_used, seeds=5 if EMULATED else 3)

    @pytest.mark.parametrize("case, mode, centered, ordinary, kind", list(norms()))
    def test_norms(case, mode, centered, ordinary, kind, backend, device, kernels_used):
        check_norm(case, mode, centered, ordinary, kind, backend, device, kernels_used, seeds=3)


if STANDS_IN and not EMULATED:
    check_zeros = test_zero_rows_and_filters
    del test_zero_rows_and_filters

    @pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
    @pytest.mark.parametrize("name", ["batch", "group_last", "position", "token"])
    def test_several_tiles_and_parts_of_a_norm(name, centered, backend, device, kernels_used, monkeypatch):
        for whole in (64, 16):
            small_tiles(monkeypatch, whole)
            check_norm(name, "late", centered, True, torch.float32, backend, device, kernels_used, seeds=1)

    @pytest.mark.parametrize("b, mode", [(1.5, "training"), (2, "late"), (2.5, "early")])
    def test_zeros(b, mode, backend, device):
        check_zeros("linear", b, mode, backend, device)
