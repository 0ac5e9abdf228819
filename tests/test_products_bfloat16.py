"""Products of rows of bfloat16 on the CPU: their sums are fp32, and what follows them rounds once."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from cpu_oracle import BF16, CHANNELS_LAST, F32, F64, LINEAR, Case, check, close, forward, oracle, tolerance

LAYER = Case(dtype=BF16, kernel=(1, 1), padding=(0, 0), format=CHANNELS_LAST, channels=64, outputs=35, size=(13, 11))
ROWS = replace(LINEAR, dtype=BF16, batch=133)
CALLS = {
    "1x1": LAYER,
    "1x1 of a tail of terms": replace(LAYER, channels=198),
    "1x1 to few": replace(LAYER, channels=40, outputs=3),
    "1x1 to many": replace(LAYER, outputs=259),
    "1x1 to one": replace(LAYER, channels=34, outputs=1),
    "1x1 of two": replace(LAYER, channels=2, size=(40, 33)),
    "1x1 of two pixels": replace(LAYER, batch=1, size=(1, 2)),
    "1x1 strided": replace(LAYER, stride=(2, 3)),
    "patches": replace(LAYER, channels=10, kernel=(2, 4), stride=(2, 4), padding=(0, 1)),
    "max_out": replace(LAYER, max_out=2),
    "linear": replace(ROWS, channels=66, outputs=70),
    "linear long": replace(ROWS, channels=1030, outputs=40),
    "linear max_out": replace(ROWS, channels=130, max_out=3),
}
"""Calls whose products are those of RowGemm."""
OTHERS = {
    "odd": replace(LAYER, channels=63),
    "odd linear": replace(ROWS, channels=65),
    "groups": replace(LAYER, groups=2, outputs=34),
    "3x3": replace(LAYER, kernel=(3, 3)),
    "few rows": replace(ROWS, channels=66, batch=30),
    "contiguous": replace(LAYER, format=torch.contiguous_format),
}
"""Calls whose products are the vendor's."""


def exact(case: Case, inputs: dict):
    return oracle(case, **{name: None if t is None else t.to(F64) for name, t in inputs.items()})


def check_forward(case: Case):
    inputs = case.inputs()
    close(forward(case, **inputs)[0], exact(case, inputs)[0], tolerance(BF16))


def integers(case: Case) -> tuple[Case, dict]:
    """Inputs whose products are exact in fp32, and are not in bfloat16."""
    case = replace(case, b=1.0, unit=False, out_dtype=F32)
    inputs = case.inputs()
    inputs["x"] = (4 * inputs["x"]).round() * 8 + 1
    inputs["weight"] = (32 * inputs["weight"]).round()
    return case, inputs


def sums_are_kept(case: Case, mutate=None) -> bool:
    case, inputs = integers(case)
    if mutate:
        mutate(inputs)
    y = forward(case, **inputs)[0]
    wanted = exact(case, inputs)[0]
    assert ((y.to(F64) - wanted).abs() <= 2.0**-8 * wanted.abs()).all()
    assert not torch.equal(wanted.to(BF16).to(F64), wanted)
    return torch.equal(y.to(F64), wanted)


needs_products = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU with instructions for bfloat16"
)


@contextmanager
def without_onednn():
    before = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@pytest.mark.parametrize("name", [*CALLS, *OTHERS])
@pytest.mark.parametrize("out_dtype", [BF16, F32])
@pytest.mark.parametrize("weight_dtype", [BF16, F32])
def test_every_power_and_dtype(name, weight_dtype, out_dtype, several_threads):
    case = replace({**CALLS, **OTHERS}[name], weight_dtype=weight_dtype, out_dtype=out_dtype)
    for b in (1.0, 1.5, 2.0):
        for options in ({}, {"bias": True}, {"bias": True, "unit": False}):
            if case.max_out == 1:
                check(replace(case, b=b, **options))
            else:  # a gradient goes to the one filter that wins, and a weight of fp32 is rounded before
                check_forward(replace(case, b=b, **options))


@needs_products
@pytest.mark.parametrize("name", CALLS)
def test_sums_are_rounded_once(name, several_threads):
    """Between the product and the scale nothing is rounded: y is as near as fp32 sums can bring it."""
    assert sums_are_kept(CALLS[name])
    case = replace(CALLS[name], eps=(1e-6, 0.0, 1e-6))
    inputs = case.inputs()
    y, n, _, _ = forward(case, **inputs)
    wanted, wanted_n = exact(case, inputs)
    assert ((n.to(F64) - wanted_n).abs() <= 1e-6 * wanted_n).all()
    half = 2.0**-8 * (1 + 1e-3)  # a unit in the last place is at most 2^-7 of a number
    sums = 1e-6 * wanted.abs().max()  # where a product cancels
    assert ((y.to(F64) - wanted).abs() <= half * wanted.abs() + sums).all()


@needs_products
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_left_to_the_vendor(name):
    assert not sums_are_kept(OTHERS[name])


@needs_products
def test_a_weight_between_words_is_left_to_the_vendor():
    """What packs a weight moves two values at once."""

    def shift(inputs):
        weight = inputs["weight"]
        room = torch.empty(weight.numel() + 1, dtype=BF16)
        inputs["weight"] = room[1:].view(weight.shape).copy_(weight)

    assert not sums_are_kept(CALLS["linear"], shift)


@pytest.mark.parametrize("name", CALLS)
def test_without_onednn(name):
    with without_onednn():
        check_forward(CALLS[name])
        assert not sums_are_kept(CALLS[name])


@pytest.mark.parametrize("name", ["1x1", "1x1 of a tail of terms", "1x1 strided", "linear"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("unit", [True, False])
def test_a_row_that_is_not_finite(name, value, unit):
    """Neither the rows beside it nor what lies beside x in memory changes an output."""
    case = replace(CALLS[name], unit=unit)
    inputs = case.inputs()
    whole = forward(case, **inputs)[0]
    x = inputs["x"]
    room = torch.full((x.numel() + 128,), value, dtype=BF16)
    inputs["x"] = room[64:-64].as_strided(x.shape, x.stride()).copy_(x)
    assert torch.equal(forward(case, **inputs)[0], whole)
    pixel = inputs["x"][-1] if case.size == () else inputs["x"][-1, :, 0, 0]
    pixel[-1] = value
    y = forward(case, **inputs)[0]
    rows = y if case.size == () else y.permute(0, 2, 3, 1).flatten(0, 2)
    before = whole if case.size == () else whole.permute(0, 2, 3, 1).flatten(0, 2)
    changed = (rows != before).any(1)
    assert changed.sum() == 1 and not rows[changed].isfinite().any()


@pytest.mark.parametrize("name", CALLS)
def test_the_same_on_every_number_of_threads(name):
    case = replace(CALLS[name], batch=max(9, CALLS[name].batch))
    inputs, threads = case.inputs(), torch.get_num_threads()
    try:
        results = []
        for count in (1, 3, 4):
            torch.set_num_threads(count)
            results.append(forward(case, **inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
