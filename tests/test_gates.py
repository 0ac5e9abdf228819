"""Gated activations: published ones compute what their own code computes, changed ones run their own forward."""

import copy
import json
import math
import pickle

import pytest
import torch
from cases import Budget
from families import DynamicMultiplication, is_accelerated, plain
from norm_families import counted
from publishing import MODES, explain, publish
from torch import nn

import bcos_kernels as bk
from bcos_kernels.adopt import gate, published
from bcos_kernels.conversion.modules import GatedGELU

pytestmark = pytest.mark.filterwarnings("ignore:accelerate")


def phi(x):
    return (torch.erf(x / math.sqrt(2)) + 1) * 0.5


class EarlyGELU(nn.Module):
    def __init__(self):
        super().__init__()
        self.detach = False

    def set_explanation_mode(self, on=True):
        self.detach = on

    def forward(self, x):
        return x * (phi(x).detach() if self.detach else phi(x))


class HeldGELU(EarlyGELU):
    def __init__(self):
        super().__init__()
        self.act = self._gelu_python

    def _gelu_python(self, x):
        return x * (phi(x).detach() if self.detach else phi(x))

    def forward(self, x):
        return self.act(x)


class LateGELU(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = self._gelu_python
        self.dynamic_multiplication = DynamicMultiplication()

    def _gelu_python(self, x):
        return self.dynamic_multiplication(weight=phi(x), input=x)

    def forward(self, x):
        return self.act(x)


class UnusedGELU(LateGELU):
    def _gelu_python(self, x):
        self.dynamic_multiplication(weight=phi(x), input=x)
        return phi(x) * x


def phi_by_tanh(x):
    return (torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))) + 1) * 0.5


class LateTanhGELU(nn.Module):
    def __init__(self):
        super().__init__()
        self.dynamic_multiplication = DynamicMultiplication()

    def forward(self, x):
        return self.dynamic_multiplication(weight=phi_by_tanh(x), input=x)


class LateSiLU(LateTanhGELU):
    def forward(self, x):
        return self.dynamic_multiplication(weight=torch.sigmoid(x), input=x)


class EarlySiLU(EarlyGELU):
    def forward(self, x):
        gate = torch.sigmoid(x)
        return x * (gate.detach() if self.detach else gate)


class EarlyTanhGELU(EarlyGELU):
    """Outside of its explanation mode it calls PyTorch's own function."""

    def forward(self, x):
        return x * phi_by_tanh(x).detach() if self.detach else nn.functional.gelu(x, approximate="tanh")


FORMULAS = {
    (EarlyTanhGELU, "forward"): {"mode": "early", "function": "gelu by tanh"},
    (LateTanhGELU, "forward"): {"mode": "late", "function": "gelu by tanh"},
    (LateSiLU, "forward"): {"mode": "late", "function": "silu"},
    (EarlySiLU, "forward"): {"mode": "early", "function": "silu"},
    (EarlyGELU, "forward"): {"mode": "early"},
    (HeldGELU, "forward"): {"held": True},
    (LateGELU, "forward"): {"held": True},
    (HeldGELU, "_gelu_python"): {"mode": "early"},
    (LateGELU, "_gelu_python"): {"mode": "late"},
    (UnusedGELU, "_gelu_python"): {"mode": "none"},
}
KINDS = [EarlyGELU, HeldGELU, LateGELU, UnusedGELU, LateTanhGELU, LateSiLU, EarlySiLU, EarlyTanhGELU]
GATES = {LateTanhGELU: phi_by_tanh, EarlyTanhGELU: phi_by_tanh, LateSiLU: torch.sigmoid, EarlySiLU: torch.sigmoid}


@pytest.fixture(autouse=True)
def _published(monkeypatch):
    rows = [("gates", kind, formula, (root,)) for (kind, root), formula in FORMULAS.items()]
    publish(monkeypatch, [*rows, ("modes", DynamicMultiplication, {"late": True})])


def example(dtype=torch.float64, seed=0):
    return (3 * torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def outcome(module, x, early=False, late=False, second=True):
    x = x.clone().requires_grad_()
    explain(module, early)
    y = module(x)
    explain(module, late)
    cotangent = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, cotangent, create_graph=second)
    explain(module, False)
    found = {"y": y.detach(), "dx": dx.detach()}
    if second:
        found["second"], found["dg"] = torch.autograd.grad(y.square().sum() + dx.square().sum(), (x, cotangent))
    return found


def reason(module):
    (row,) = bk.report(module).of("gate")
    return row.reason


def test_every_gate_of_the_table_has_a_stand_in():
    rows = json.loads(published.TABLE.read_text())["gates"].values()
    assert all(row["formula"] in FORMULAS.values() or "left" in row["formula"] for row in rows) and len(rows) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_gate_family(kind):
    """In float64 to 1e-10: every explanation mode, two orders, with and without a graph, batches of cotangents."""
    theirs, ours = kind(), bk.accelerate(kind())

    def run():
        assert bk.report(ours).of("gate")[0].backend == "torch"
        for i, (early, late) in enumerate(MODES.values()):
            for second in (True, False):
                a, b = (outcome(m.train(second), example(seed=i), early, late, second) for m in (ours, theirs))
                for key, truth in b.items():
                    assert torch.allclose(a[key], truth, rtol=1e-10, atol=1e-12), (early, late, key)
            x, both = example(seed=i), []
            for module in (ours, theirs):
                explain(module, early)
                assert torch.allclose(module(x), x * GATES.get(kind, phi)(x), rtol=1e-10)
                x.requires_grad_()
                y = module(x)
                explain(module, late)
                both.append(torch.autograd.grad(y, x, torch.stack((x, y)).detach(), is_grads_batched=True)[0])
            assert torch.allclose(*both, rtol=1e-10, atol=1e-12)

    assert not counted(run)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0, -3, -6])
def test_it_is_at_least_as_accurate(kind, dtype, mean):
    """Against float64, two orders: at most 1.1 times the error of the gate's own forward plus one ulp."""
    theirs, ours = kind(), bk.accelerate(kind())
    for early, late in MODES.values():
        for second in (False, True):
            x = ((example() + mean) / (1 if mean == 0 else 3)).to(dtype)
            truth = outcome(theirs, x.double(), early, late, second)
            found = [outcome(module, x, early, late, second) for module in (ours, theirs)]
            for key, value in truth.items():
                mine, yours = ((f[key].double() - value).norm() / value.norm() for f in found)
                assert found[0][key].dtype == found[1][key].dtype
                assert mine <= 1.1 * yours + torch.finfo(dtype).eps, (early, late, key, mine, yours)


@pytest.mark.parametrize("kind, make", [
    (EarlyGELU, lambda: bk.accelerate(EarlyGELU())), (EarlyGELU, GatedGELU),
    (LateTanhGELU, lambda: bk.accelerate(LateTanhGELU())), (EarlyTanhGELU, lambda: bk.accelerate(EarlyTanhGELU())),
], ids=["accelerated", "converted", "late by tanh", "early by tanh"])  # fmt: skip
@pytest.mark.parametrize("mean", [4, 0, -2, -4, -6])
@pytest.mark.parametrize("frozen", [False, True], ids=["training", "explanation"])
def test_where_most_gates_are_nearly_closed_or_open(kind, make, mean, frozen):
    """1 + erf(x/√2) and 1 + tanh(a) cancel where x is negative, and what is rounded beside the 1 counts."""
    theirs, ours = kind(), make()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        budget = Budget()
        for seed in range(10):
            x = (example(seed=seed) / 3 + mean).to(dtype)
            truth = outcome(theirs, x.double(), frozen, frozen, second=False)
            found = [outcome(module, x, frozen, frozen, second=False) for module in (ours, theirs)]
            for key, exact in truth.items():
                size = exact.norm() / exact.numel() ** 0.5
                budget.add(key, *(f[key].double() / size for f in found), exact / size, dtype)
        budget.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("early", [False, True])
def test_transforms_of_a_converted_gate(dtype, early):
    """Forward-mode derivatives, which see its operators, are those of its backward."""
    module, x = GatedGELU(), example().to(dtype)
    explain(module, early)
    dx = outcome(module, x, early, early, second=False)["dx"]
    explain(module, early)
    cotangent = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).view(x.shape).to(dtype)
    y, tangent = torch.func.jvp(module, (x,), (cotangent,))
    (transformed,) = torch.func.vjp(module, x)[1](cotangent)
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    for found, expected in ((y, module(x)), (tangent, dx), (transformed, dx)):
        assert found.dtype == dtype and torch.allclose(found, expected, **close)
    assert torch.allclose(torch.func.vmap(module)(x), y, **close)


@pytest.mark.parametrize("make", [lambda: bk.accelerate(EarlyGELU()), GatedGELU], ids=["accelerated", "converted"])
def test_a_gate_saves_its_input_alone(make):
    saved, x = [], example().requires_grad_()
    module = make()
    for mode in (False, True):
        explain(module, mode)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            module(x)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()] * 2


def same_as_its_own(module):
    for mode in (False, True):
        a, b = (outcome(m, example(), mode, mode, second=False) for m in (module, plain(module)))
        assert all(torch.allclose(a[key], truth, rtol=1e-12, atol=1e-12) for key, truth in b.items())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "kind, owner, attribute",
    [
        (EarlyGELU, EarlyGELU, "forward"),
        (HeldGELU, HeldGELU, "_gelu_python"),
        (EarlyGELU, torch, "erf"),
        (LateTanhGELU, math, "pi"),
        (LateSiLU, torch, "sigmoid"),
        (LateGELU, DynamicMultiplication, "forward"),
        (UnusedGELU, DynamicMultiplication, "__call__"),
    ],
)
def test_code_replaced_on_a_class_or_in_a_module(kind, owner, attribute, when, monkeypatch):
    original = getattr(owner, attribute)
    module = bk.accelerate(kind()) if when == "after" else None
    other = (lambda *a, **o: 2 * original(*a, **o)) if callable(original) else 2 * original
    monkeypatch.setattr(owner, attribute, other, raising=False)
    module = module or bk.accelerate(kind())
    assert reason(module) is not None
    same_as_its_own(module)


@pytest.mark.parametrize(
    "kind, change, message",
    [
        (HeldGELU, lambda m: setattr(m, "act", torch.tanh), "its act is not its own _gelu_python"),
        (HeldGELU, lambda m: setattr(m, "act", HeldGELU().act), "its act is not its own _gelu_python"),
        (LateGELU, lambda m: setattr(m.dynamic_multiplication, "forward", lambda weight, input: input), "assigned"),
        (LateGELU, lambda m: m.dynamic_multiplication.register_forward_hook(lambda *_: None), "has a hook"),
        (UnusedGELU, lambda m: m.dynamic_multiplication.register_forward_hook(lambda *_: None), "has a hook"),
    ],
)
def test_an_instance_changed_afterwards(kind, change, message):
    module = bk.accelerate(kind())
    change(module)
    assert message in reason(module)
    same_as_its_own(module)


def test_inputs_that_are_not_floating_point_run_its_own_forward():
    module = bk.accelerate(EarlyGELU())
    told = counted(lambda: module(torch.ones(3, dtype=torch.long)))
    assert list(told) == [
        ("ran plain", "EarlyGELU", "its input is torch.int64, torch.strided: "
         "a dense tensor of a floating-point dtype is needed")
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles(kind):
    module = bk.accelerate(kind())
    expected = outcome(module, example(), True, True)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert is_accelerated(other) and reason(other) is None
        assert all(torch.equal(v, expected[k]) for k, v in outcome(other, example(), True, True).items())
        assert type(bk.restore(other)) is kind


class OtherGELU(EarlyGELU):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_is_left_alone_and_what_is_nobodys():
    model = nn.Sequential(OtherGELU(), nn.GELU(), EarlyGELU())
    (first, last) = bk.report(bk.accelerate(model)).rows
    assert first.reason == "the code of OtherGELU.forward is not among the published gates" and last.backend == "torch"
    assert gate.KIND.is_candidate(model[2]) and not gate.KIND.is_candidate(model[1])


@pytest.mark.slow
def test_compilers_and_transforms_see_the_gates_own_operators():
    """This is no reason to report."""
    module, x = bk.accelerate(EarlyGELU()), example()
    torch._dynamo.reset()

    def run():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), x * phi(x))
        assert torch.allclose(torch.func.vmap(module)(x), x * phi(x))
        _, tangent = torch.func.jvp(module, (x,), (x,))
        assert tangent.isfinite().all()

    assert not counted(run)
