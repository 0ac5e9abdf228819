"""Rows of the dynamic linear map by the GPU kernels: several gradients of every image in one call."""

import pytest
import torch
from cases import IDS, Case
from rows_checks import NORMS, assert_same, check_norm, gradients_of, one_by_one, rows, taken  # noqa: F401
from where import DEVICE, STANDS_IN

from bcos_kernels.transform import TRANSFORM
from bcos_kernels.transform.call import of_shapes

LAYERS = (
    "conv3x3", "conv1x1", "conv1x1_stride2", "b1", "grouped_b1.5", "depthwise", "max_out", "bias_unit_max_out",
    "linear", "linear_b1.5", "conv1d", "conv3d",
)  # fmt: skip
KINDS = [(torch.float32, False), (torch.bfloat16, True)]
"""Dtypes, and whether images are channels_last; in a stand-in, which is slow, one layout for each dtype."""
if not STANDS_IN:
    KINDS += [(torch.float32, True), (torch.bfloat16, False)]


@pytest.mark.parametrize("dtype, channels_last", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_a_layer(name, dtype, channels_last, backend, force, taken):  # noqa: F811
    """They share the scale, in the products of the vendor, whoever served the forward."""
    force("vendor")  # which forms the single rows, too
    case = IDS[name]
    x, weight, bias = (t if t is None else t.to(DEVICE) for t in case.inputs(dtype, channels_last=channels_last))
    x = x.detach().requires_grad_()
    y = Case(name, case.x, case.weight, {**case.options, "detach": True}, case.bias)(x, weight, bias)
    gradients = gradients_of(y)
    single = one_by_one(y, x, gradients)
    many = rows(y, x, gradients)
    assert taken == ["transform"]
    assert_same(many, single)
    if y.dim() == 4 and min(x.shape[2:]) > 1 and x.shape[1] > 1:
        assert many[0].is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("name", NORMS)
def test_rows_of_a_norm(name, taken):  # noqa: F811
    for layout in (torch.contiguous_format, torch.channels_last):
        check_norm(name, torch.float32, DEVICE, True, layout, taken)
        del taken[:]


def test_rows_beyond_the_largest_index_take_one_call_each(backend):
    call = of_shapes((2, 3, 1024, 1024), (4, 3, 1, 1), device=DEVICE)
    vendor = next(c for c in TRANSFORM.candidates_of(backend) if c.name == "vendor")
    assert vendor.takes_rows(call, 2)
    assert not vendor.takes_rows(call, 1024)
