"""Published norms are accelerated and compute what their own code computes: values, two orders, buffers, dtypes."""

import json
from functools import partial

import norm_families
import pytest
import torch
from norm_families import MAKERS, accelerated, example, norm
from publishing import MODES, explain, guided, outcome, same

import bcos_kernels as bk
from bcos_kernels import tally
from bcos_kernels.adopt import norm as adopted
from bcos_kernels.adopt import published

_published = pytest.fixture(autouse=True)(lambda monkeypatch: norm_families.publish(monkeypatch))

BACKENDS = ("cpu", "reference")
SLOW = partial(pytest.param, marks=pytest.mark.slow)


def test_every_norm_of_the_table_has_a_stand_in():
    """The rows of ``bcos`` itself are run as they are; each other formula is one that a stand-in computes."""
    rows = json.loads(published.TABLE.read_text())["norms"].values()
    formulas = [row["formula"] for row in rows if not any(where.startswith("bcos-") for where in row["where"])]
    known = list(norm_families.FORMULAS.values())
    assert len(rows) == 25
    assert all(formula in known or {"fails", "left"} & formula.keys() for formula in formulas)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vendor", [True, SLOW(False)], ids=["vendor", "no vendor"])
@pytest.mark.parametrize("name", MAKERS)
def test_norm_family(name, vendor, backend, monkeypatch):
    """In float64 to 1e-10: training and evaluation, every explanation mode, two orders, running buffers."""
    monkeypatch.setattr(adopted, "VENDOR", vendor)
    theirs = norm(name)
    ours = accelerated(theirs, backend)
    (row,) = bk.report(ours).rows
    assert (row.backend, row.kind) == (backend, "norm")
    before = tally.current()
    for training in (True, False):
        for i, (early, late) in enumerate(MODES.values()):
            x = example(name, i)
            results = [outcome(m.train(training), x, early, late) for m in (ours, theirs)]
            same(*results, 1e-10)
    assert not [key for key in tally.current() - before if key[0] == tally.PLAIN]


def test_guidance_order_in_a_norm():
    modules = norm("late batch"), bk.accelerate(norm("late batch"))
    same(*(guided(module, example("late batch"), module.weight) for module in modules), 1e-10)


FORMATS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "rotated": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "a slice": lambda x: torch.cat([x, x])[: len(x)] if x.dim() < 3 else torch.cat([x, x], 2)[:, :, : x.shape[2]],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def combinations() -> list:
    """``make check`` has each norm once; ``make test`` each by every backend, beside every dtype of autocast and beside
    every layout, and each of these two beside the other in a third of the norms; ``make thorough`` has the rest."""
    found = []
    for i, name in enumerate(MAKERS):
        for j, backend in enumerate(("reference", None)):
            for k, autocast in enumerate((None, torch.bfloat16, torch.float16)):
                for m, layout in enumerate(FORMATS):
                    first = (j, k, m) == (0, 0, 0)
                    marks = () if first else (pytest.mark.slow,)
                    if not first and (i + j + k + m) % 3:
                        marks = (pytest.mark.slow, pytest.mark.thorough)
                    words = f"{name}-{backend}-{autocast}-{layout}"
                    found.append(pytest.param(name, backend, autocast, layout, marks=marks, id=words))
    return found


@pytest.mark.parametrize("name, backend, autocast, layout", combinations())
def test_dtype_and_memory_format_are_those_of_the_own_forward(name, backend, autocast, layout):
    """For every dtype of input and parameters, in training and evaluation, in both modes the same comes out."""
    for held in DTYPES:
        theirs = norm(name, held)
        ours = accelerated(theirs, backend)
        for x in (FORMATS[layout](example(name, dtype=dtype)) for dtype in DTYPES):
            for training in (True, False):
                for mode in (False, True):
                    results = []
                    for module in (ours.train(training), theirs.train(training)):
                        explain(module, mode)
                        with torch.autocast("cpu", autocast, enabled=autocast is not None):
                            try:
                                results.append(module(x))
                            except RuntimeError as error:  # their own: PyTorch's norms refuse some pairs of dtypes
                                results.append(error)
                    a, b = results
                    what = (held, x.dtype, training, mode)
                    if isinstance(b, Exception):
                        assert type(a) is type(b) and str(a) == str(b), what
                        continue
                    assert (a.dtype, a.shape) == (b.dtype, b.shape), what
                    assert a.stride() == b.stride(), what
                    assert torch.allclose(a.float(), b.float(), rtol=0.03, atol=0.03), what


@pytest.mark.parametrize("name", ["BatchNormUncentered2d", "DetachableLayerNorm", "late tokens", "cast batch"])
def test_half_precision_is_at_least_as_accurate(name):
    """Against float64, on the CPU's kernels: at most 1.1 times the error of the norm's own forward plus one ulp."""
    exact = norm(name)
    for dtype in (torch.float32, torch.bfloat16):
        x = example(name, dtype=dtype)
        theirs = norm(name, dtype)
        exact.load_state_dict(theirs.double().state_dict())
        theirs.to(dtype)
        ours = accelerated(theirs)
        truth = outcome(exact, x.double(), True, True, second=False)
        a, b = (outcome(m, x, True, True, second=False) for m in (ours, theirs))
        for what in ("y", "dx"):
            scale = truth[what].norm()
            mine, yours = ((found[what].double() - truth[what]).norm() / scale for found in (a, b))
            assert mine <= 1.1 * yours + torch.finfo(dtype).eps, (dtype, what, mine, yours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_out_dtype_of_norms_under_autocast(dtype):
    """It is that of the layers; a norm follows where its input has it."""
    module = accelerated(norm("BatchNormUncentered2d", torch.float32), "reference")
    bk.accelerate(module, out_dtype=dtype, backend="reference")
    x = example("BatchNormUncentered2d", dtype=dtype)
    with torch.autocast("cpu", dtype):
        assert module(x).dtype == dtype and module(x.float()).dtype == torch.float32
    assert module(x).dtype == torch.float32
