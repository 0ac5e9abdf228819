"""What a compiler is told of the results of GPU kernels: shapes, dtypes and strides; Inductor asserts them."""

import pytest
import torch
from fakes import CALLS, layouts, wrong_fakes
from where import STANDS_IN

FEW = ("contiguous", "channels_last", "channels_last, sliced", "transposed")
"""The layouts that are tried in a stand-in, which is slow."""


@pytest.mark.parametrize("name", CALLS)
def test_fakes_have_the_strides_of_the_results(name, device):
    few = FEW[1:2] if name == "dynamic alignment" else FEW  # the slowest of all

    def moved(t):
        return [(layout, view) for layout, view in layouts(t) if not STANDS_IN or layout in few]

    assert not wrong_fakes(name, torch.float32, device, moved)
