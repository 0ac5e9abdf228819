"""Published attentions are accelerated and compute what their own code computes: values, two orders, dtypes."""

import json

import attention_families
import pytest
import torch
from attention_families import MAKERS, accelerated, attention, example
from publishing import MODES, explain, guided, outcome, same

import bcos_kernels as bk
from bcos_kernels import tally
from bcos_kernels.adopt import attend, published

pytestmark = pytest.mark.filterwarnings("ignore:accelerate")
_published = pytest.fixture(autouse=True)(lambda monkeypatch: attention_families.publish(monkeypatch))


def test_every_attention_of_the_table_has_a_stand_in():
    rows = json.loads(published.TABLE.read_text())["attentions"].values()
    formulas = [row["formula"] for row in rows if "left" not in row["formula"]]
    assert formulas == [{"late": True}, {"late": False}]


@pytest.mark.parametrize("name", MAKERS)
def test_attention_family(name):
    """In float64 to 1e-10: training and evaluation, every explanation mode, two orders, with and without a graph."""
    theirs = attention(name)
    ours = accelerated(theirs)
    (row,) = bk.report(ours).of("attention")
    assert row.backend == "torch"
    before = tally.current()
    for training in (True, False):
        for i, (early, late) in enumerate(MODES.values()):
            for second in (True, False):
                x = example(i)
                same(*(outcome(m.train(training), x, early, late, second) for m in (ours, theirs)), 1e-10)
            for module in (ours, theirs):
                explain(module, early)
            with torch.no_grad():
                assert torch.allclose(ours(x), theirs(x), rtol=1e-10)
    assert not [key for key in tally.current() - before if key[0] == tally.PLAIN]


def test_guidance_order_in_an_attention():
    modules = attention("late"), bk.accelerate(attention("late"))
    same(*(guided(module, example(), module.to_qkv.weight) for module in modules), 1e-10)


@pytest.mark.parametrize("name", ["early", "late"])
def test_gradients_of_a_batch_of_cotangents(name):
    """``is_grads_batched``: a transform of ``torch.func`` runs the backward."""
    found = []
    for module in (accelerated(attention(name)), attention(name)):
        x = example().requires_grad_()
        y = module(x)
        cotangents = torch.stack([torch.ones_like(y), y.detach()])
        found.append({"dx": torch.autograd.grad(y, x, cotangents, is_grads_batched=True)[0]})
    same(*found, 1e-10)


@pytest.mark.parametrize("mode", ["off", "early", "late"])
@pytest.mark.parametrize("name", ["early", "late"])
@pytest.mark.parametrize("size", [1.0, pytest.param(30.0, marks=pytest.mark.slow)], ids=["usual", "peaked"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "autocast"])
def test_it_is_at_least_as_accurate(name, mode, size, dtype):
    """Against float64, over many inputs, two orders: at most 1.1 times the error of its own forward plus one ulp."""
    early, late = MODES[mode]
    held = torch.bfloat16 if dtype == "bf16" else torch.float32
    theirs = attention(name, held)
    with torch.no_grad():
        theirs.to_qkv.weight.mul_(size**0.5)
    ours, exact = accelerated(theirs), attention(name)
    exact.load_state_dict({k: v.double() for k, v in theirs.state_dict().items()})
    ulp = torch.finfo(torch.float32 if dtype == "fp32" else torch.bfloat16).eps
    for second in (False, True):
        squares = {}
        for seed in range(24):
            x = example(seed, held, tokens=33)
            truth = outcome(exact, x.double(), early, late, second)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
                found = [outcome(module, x, early, late, second) for module in (ours, theirs)]
            for key, value in truth.items():
                norms = [value.norm(), *((other[key].double() - value).norm() for other in found)]
                squares[key] = squares.get(key, 0) + torch.stack(norms).square()
        for key, (total, mine, yours) in squares.items():
            assert mine.sqrt() <= 1.1 * yours.sqrt() + ulp * total.sqrt(), (key, mine, yours)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_dtypes_and_strides_of_the_output(name, autocast):
    for held in (torch.float32, torch.float64, torch.bfloat16):
        theirs = attention(name, held)
        ours = accelerated(theirs)
        for mode in (False, True):
            seen = []
            for module in (ours, theirs):
                explain(module, mode)
                module.to_out.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                with torch.autocast("cpu", autocast, enabled=autocast is not None):
                    y = module(example(dtype=held))
                seen.append(y)
            assert [(t.dtype, t.stride()) for t in seen[:2]] == [(t.dtype, t.stride()) for t in seen[2:]]
            for module in (ours, theirs):
                module.to_out._forward_pre_hooks.clear()


def test_inference_is_fused_only_where_that_is_exact(monkeypatch):
    """Products that all overflow give NaN, as in the published code; PyTorch's fused attention would give 0."""
    module, calls, original = accelerated(attention("early", torch.float32)), [], attend.F.scaled_dot_product_attention

    def counting(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(attend.F, "scaled_dot_product_attention", counting)
    x = example(dtype=torch.float32)
    with torch.no_grad():
        assert module(x).isfinite().all() and len(calls) == 1
        module.to_qkv.weight[:12].fill_(1e30)
        module.to_qkv.weight[12:24].fill_(-1e30)
        module.norm = torch.nn.Identity()
        assert module(x.abs()).isnan().all() and len(calls) == 1


def test_no_tensor_of_all_products_exists():
    """The published late attention holds a value for every pair of tokens and channel of a head."""
    module, largest = accelerated(attention("late")), []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            largest.append(max((t.numel() for t in (found,) if isinstance(t, torch.Tensor)), default=0))
            return found

    x = example(tokens=50).requires_grad_()
    with Sizes():
        (dx,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        dx.square().sum().backward()
    assert max(largest) <= 3 * attention_families.HEADS * 50 * 50
