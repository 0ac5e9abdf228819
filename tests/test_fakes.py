"""What a compiler is told of the operators' results: shapes, dtypes and strides, for tensors of every layout."""

import pytest
import torch
from cases import thinned
from fakes import CALLS, wrong_fakes
from torch._inductor import config

import bcos_kernels as bk


@pytest.mark.parametrize("name", thinned(CALLS, lambda name: name in ("1x1", "linear", "norm over the batch")))
def test_fakes_have_the_strides_of_the_results(name):
    assert not wrong_fakes(name, torch.float32, "cpu")


@pytest.mark.slow
def test_a_layer_behind_a_transposition_is_compiled():
    """Whose x and weight are dense, but lie in no memory format of torch: Inductor asserts the strides of gradients."""

    def layer(x, weight):
        return bk.functional.bcos_conv2d(torch.relu(x).mT, (2 * weight).mT, padding=1)

    torch._dynamo.reset()
    inputs = [torch.randn(shape).requires_grad_() for shape in ((2, 6, 5, 4), (8, 6, 3, 3))]
    y = layer(*inputs)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, inputs, grad)
    with config.patch(force_disable_caches=True):  # which hold what an earlier fake said
        found = torch.autograd.grad(torch.compile(layer, fullgraph=True)(*inputs), inputs, grad)
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact)
