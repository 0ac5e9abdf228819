"""Rows of x with a tiny norm beside a bias: what only such rows can lose of their gradients."""

import pytest
import torch
from tiny_rows import MODES, SCALES, check
from where import STANDS_IN

SEEDS = 9 if STANDS_IN else 21


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("b", [1.5, 2, 3])
def test_tiny_rows_beside_a_bias(b, scale, mode, backend, device):
    check(b, scale, mode, torch.float32, backend, device, SEEDS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", SCALES[1::3] if STANDS_IN else SCALES)
@pytest.mark.parametrize("b", [1.5, 2])
def test_tiny_rows_in_bfloat16(b, scale, mode, backend, device):
    check(b, scale, mode, torch.bfloat16, backend, device, SEEDS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("b", [1.5, 2])
def test_small_rows_in_float16(b, mode, backend, device):
    check(b, 1e-2, mode, torch.float16, backend, device, SEEDS)
