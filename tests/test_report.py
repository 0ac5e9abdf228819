"""The report is a table, and what accelerate, restore and report do not take is an error that names it."""

import pytest
import torch
from families import OwnForward, altered, net
from torch import nn

import bcos_kernels as bk
from bcos_kernels.compat import import_reference
from bcos_kernels.transform import TRANSFORM

M = import_reference().modules


def test_report_is_a_table():
    model = nn.Sequential(bk.accelerate(net()), OwnForward(3, 3), M.BcosLinear(3, 3), bk.BcosLinear(3, 3))
    report = bk.report(model)
    lines = str(report).splitlines()
    assert [row.name for row in report.rows] == ["0.0", "0.2", "0.4", "1", "2", "3"]
    assert (report.accelerated, report.left_alone) == (4, 2)
    assert lines[0].split() == ["module", "class", "backend"]
    assert "left alone: the code of OwnForward.forward is not among the published layers" in lines[4]
    assert "accelerate(model) would" in lines[5]
    assert lines[-1].startswith("6 B-cos layers: 4 accelerated (") and lines[-1].endswith(", 2 left alone")


def test_report_of_own_layers():
    class Shifted(bk.BcosConv2d):
        def forward(self, in_tensor):
            return super().forward(in_tensor) + 1

    assigned = altered(bk.BcosLinear(3, 3), forward=lambda x: x)
    rows = bk.report(nn.Sequential(Shifted(3, 3), assigned, bk.BcosConv2dWithScale(3, 3))).rows
    assert [row.reason for row in rows[:2]] == [
        "class Shifted overrides forward",
        "its forward was assigned on the instance",
    ]
    assert rows[2].backend in TRANSFORM.backends


def test_report_names_the_backend_that_cannot_serve():
    layer = bk.accelerate(M.BcosConv2d(3, 3, 3, padding=1, padding_mode="reflect"), backend="cpu")
    reason = bk.report(layer).rows[0].reason
    assert "backend='cpu' cannot serve this call" in reason
    with pytest.raises(ValueError, match="cannot serve"):
        layer(torch.randn(1, 3, 5, 5))


@pytest.mark.parametrize("call", [bk.accelerate, bk.restore, bk.report])
def test_model_must_be_a_module(call):
    with pytest.raises(TypeError, match=r"model=3: a torch\.nn\.Module"):
        call(3)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"backend": "quick"}, ValueError, "backend='quick': allowed are 'cpu'"),
        ({"out_dtype": "float16"}, TypeError, "out_dtype='float16': a torch.dtype"),
        ({"out_dtype": torch.int8}, ValueError, "out_dtype=torch.int8: a floating-point"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        bk.accelerate(nn.ReLU(), **options)
