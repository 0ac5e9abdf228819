"""The report: a summary and a table; what accelerate, restore and report do not take is an error that names it."""

import json

import pytest
import torch
from families import OwnForward, altered, net
from torch import nn

import bcos_kernels as bk
from bcos_kernels.compat import import_reference
from bcos_kernels.transform import TRANSFORM

M = import_reference().modules


def mixed():
    norms = [bk.accelerate(M.norms.BatchNormUncentered2d(3)), M.norms.BatchNormUncentered2d(3)]
    norms += [bk.accelerate(M.norms.DetachableLayerNorm(3)) for _ in range(2)]
    return nn.Sequential(bk.accelerate(net()), OwnForward(3, 3), M.BcosLinear(3, 3), bk.BcosLinear(3, 3), *norms)


UNKNOWN = "the code of OwnForward.forward is not among the published layers"
VENDORS = "outside of the explanation mode torch's own norm serves"


def test_report_is_a_summary():
    """What each backend serves, kind by kind, and why anything is not accelerated; it fits into a terminal."""
    report = bk.report(mixed())
    assert (report.accelerated, report.left_alone) == (4, 2)
    assert (len(report.layers), len(report.norms)) == (6, 4)
    lines = str(report).splitlines()
    assert lines[0] == "6 B-cos layers: 4 accelerated (4 by cpu), 2 left alone"
    assert lines[1] == "4 norms: 3 accelerated (3 by cpu), 1 left alone"
    text = " ".join(line.strip() for line in lines)
    assert f"2 norms of class DetachableLayerNorm: {VENDORS}" in text
    assert f"left alone: 1 B-cos layer of class OwnForward: {UNKNOWN}" in text
    assert "left alone: 1 norm of class BatchNormUncentered2d: not accelerated: accelerate(model) would" in text
    assert lines[-1] == "each of them: print(report(model).table())"
    assert repr(report) == f"<Report: {lines[0]}; {lines[1]}>"


def test_lines_of_a_report_are_no_wider_than_the_terminal(monkeypatch):
    for columns in (60, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        report = bk.report(mixed())
        assert max(map(len, f"{report}\n{report.table()}".splitlines())) <= columns


def test_report_has_a_table():
    report = bk.report(mixed())
    lines = report.table().splitlines()
    assert [row.name for row in report.rows] == ["0.0", "0.2", "0.4", "1", "2", "3", "4", "5", "6", "7"]
    assert lines[0].split() == ["module", "class", "backend"]
    assert [line.split()[2:] for line in lines[4:8]] == [
        ["left", "alone", "[1]"],
        ["left", "alone", "[2]"],
        ["cpu"],
        ["cpu"],
    ]
    assert lines[9].split() == ["6", "DetachableLayerNorm", "cpu", "[3]"]
    assert lines[11:14] == [f"[1] {UNKNOWN}", "[2] not accelerated: accelerate(model) would", f"[3] {VENDORS}"]
    assert lines[14:] == str(report).splitlines()[:2]


def test_report_as_html_and_as_a_dictionary():
    report = bk.report(mixed())
    shown = report._repr_html_()
    assert (
        shown.startswith("<p>6 B-cos layers: 4 accelerated") and shown.count("<tr>") == 11 and "torch&#x27;s" in shown
    )
    found = json.loads(json.dumps(report.to_dict()))
    assert found["layer"] == {"accelerated": 4, "left_alone": 2, "backends": {"cpu": 4}}
    assert found["norm"] == {"accelerated": 3, "left_alone": 1, "backends": {"cpu": 3}}
    assert found["rows"][3] == {
        "name": "1", "class_name": "OwnForward", "backend": None, "reason": UNKNOWN, "measured": False, "choices": [],
        "kind": "layer", "note": "",
    }  # fmt: skip


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
    layer = bk.accelerate(M.BcosConv2d(3, 3, 3, max_out=256), backend="cpu")
    reason = bk.report(layer).rows[0].reason
    assert "backend='cpu' cannot serve this call" in reason
    with pytest.raises(ValueError, match="cannot serve"):
        layer(torch.randn(1, 3, 5, 5))


@pytest.mark.parametrize("make", [lambda: bk.BcosConv2d(4, 3, 3), lambda: bk.BcosLinear(4, 3)])
@pytest.mark.parametrize(
    "name, value, error", [("b", 0.5, ValueError), ("b", "2", TypeError), ("max_out", 2, ValueError)]
)
def test_report_tells_of_a_layer_whose_calls_fail(make, name, value, error):
    layer = make()
    setattr(layer, name, value)
    with pytest.raises(error) as raised:
        layer(torch.rand(1, 4, 3, 3) if hasattr(layer, "kernel_size") else torch.rand(1, 4))
    (row,) = bk.report(layer).rows
    assert row.backend is None and row.reason == str(raised.value)


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
