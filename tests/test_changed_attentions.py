"""A changed attention computes what its own forward computes; copies, pickles, and what is counted and told."""

import copy
import pickle
import warnings
from functools import partial
from types import MethodType

import attention_families
import pytest
import torch
import torch.nn.functional as F
from attention_families import DIM, Early, Late, accelerated, attention, example
from families import DynamicMultiplication, is_accelerated, plain, reason
from norm_families import counted
from publishing import explain, outcome, same_or_raised
from torch import nn

import bcos_kernels as bk
from bcos_kernels import tally
from bcos_kernels.adopt import accelerate_as_built

pytestmark = pytest.mark.filterwarnings("ignore:accelerate")
_published = pytest.fixture(autouse=True)(lambda monkeypatch: attention_families.publish(monkeypatch))


def same_as_its_own(module):
    """Values and gradients, in both modes, or the error."""
    for mode in (False, True):
        ours, theirs = (partial(outcome, m, example(), mode, mode, second=False) for m in (module, plain(module)))
        same_or_raised(ours, theirs)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "name, owner, attribute",
    [
        ("early", Early, "forward"),
        ("early", attention_families.importlib.import_module("bcos.models.vit"), "rearrange"),
        ("early", F, "softmax"),
        ("early", torch, "matmul"),
        ("early", nn.Softmax, "forward"),
        ("late", DynamicMultiplication, "forward"),
        ("late", DynamicMultiplication, "__call__"),
    ],
)
def test_code_replaced_on_a_class_or_in_a_module(name, owner, attribute, when, monkeypatch):
    module, original = attention(name), getattr(owner, attribute)
    if when == "after":
        bk.accelerate(module)
        assert bk.report(module).of("attention")[0].backend == "torch"
    monkeypatch.setattr(owner, attribute, lambda *a, **o: 2 * original(*a, **o), raising=False)
    bk.accelerate(module)
    assert bk.report(module).of("attention")[0].backend is None
    same_as_its_own(module)
    monkeypatch.undo()
    attention_families.publish(monkeypatch)
    if when == "after":
        assert bk.report(module).of("attention")[0].backend == "torch"


def test_a_replaced_linear_layer_is_called(monkeypatch):
    """It may form the values alone only while its code is PyTorch's own."""
    module, original = accelerated(attention("early")), nn.Linear.forward
    same_as_its_own(module)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: original(self, x).tanh())
    same_as_its_own(module)
    assert bk.report(module).of("attention")[0].backend == "torch"


def set_on(name, value):
    return lambda module: setattr(module, name, value)


def forward_of(name):
    def change(module):
        part = getattr(module, name)
        part.forward = MethodType(lambda self, *args, **options: 2 * type(self).forward(self, *args, **options), part)

    return change


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("early", forward_of("attend"), "the forward of its .attend was assigned on the instance"),
        ("late", forward_of("dyn_mul"), "the forward of its .dyn_mul was assigned on the instance"),
        ("early", set_on("attend", nn.Softmax(dim=1)), "its .attend is over the dimension 1"),
        ("early", set_on("attend", nn.Sigmoid()), "its .attend is Sigmoid, not nn.Softmax"),
        ("early", lambda m: vars(m).update(attend=torch.sigmoid), "its attend was assigned on the instance"),
        ("early", set_on("scale", nn.Parameter(torch.ones((), dtype=torch.float64))), "is not a finite number"),
        ("early", set_on("scale", float("inf")), "its scale=inf is not a finite number"),
        ("early", set_on("heads", 0), "its heads=0 is not a positive integer"),
        ("early", lambda m: delattr(m, "norm"), "it has lost its norm"),
        ("late", lambda m: delattr(m, "dyn_mul"), "it has lost its dyn_mul"),
        ("late", lambda m: setattr(m.dyn_mul, "state", []), "its dyn_mul has no state with the key"),
        ("early", set_on("attend", nn.Softmax(dim=3)), None),
        ("early", set_on("heads", 3), None),
        ("early", set_on("heads", 5), None),
        ("late", set_on("scale", -2), None),
        ("early", set_on("scale", 0.0), None),
        ("early", forward_of("to_qkv"), None),
        ("early", forward_of("norm"), None),
        ("early", set_on("to_qkv", nn.Linear(DIM, 36).double()), None),
        ("early", set_on("to_qkv", nn.Linear(DIM, 35).double()), None),
        ("early", set_on("to_qkv", nn.Linear(DIM + 1, 36).double()), None),
        ("early", set_on("to_qkv", nn.Sequential(nn.Linear(DIM, 36).double(), nn.ReLU())), None),
        ("late", set_on("to_qkv", nn.Linear(DIM, 39).double()), None),
        ("early", lambda m: nn.utils.parametrizations.weight_norm(m.to_qkv), None),
        ("early", lambda m: m.to_qkv.weight.requires_grad_(False), None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_instance_changed_afterwards(name, change, message):
    module = accelerated(attention(name))
    change(module)
    parameters = [p for p in module.parameters() if not p.requires_grad]
    for p in parameters:
        p.requires_grad_()
    same_as_its_own(module)
    if message is not None:
        assert message in bk.report(module).of("attention")[0].reason


@pytest.mark.parametrize("name", ["norm", "to_qkv", "to_out", "attend"])
def test_hooks_on_parts_see_their_calls_and_change_them(name):
    """In both modes; a hook on the softmax makes the attention run its own forward."""
    module, seen = accelerated(attention("early")), []

    def hook(part, args, output):
        seen.append(name)
        return 2 * output

    getattr(module, name).register_forward_hook(hook)
    same_as_its_own(module)
    assert len(seen) == 4
    assert (bk.report(module).of("attention")[0].reason == "its .attend has a hook") is (name == "attend")


def test_an_attention_that_has_lost_its_mode():
    module = accelerated(attention("early"))
    del module.detach
    with pytest.raises(AttributeError, match="detach"):
        module(example())
    assert bk.report(module).of("attention")[0].reason == "it has lost its detach"


def test_a_global_hook_sees_the_softmax():
    module, seen = accelerated(attention("early")), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(type(m)))
    try:
        module(example())
    finally:
        handle.remove()
    assert nn.Softmax in seen


def test_the_gradient_of_a_hooked_part_is_seen():
    module, seen = accelerated(attention("early")), []
    module.to_qkv.register_full_backward_hook(lambda part, dx, dy: seen.append(dy[0]))
    explain(module, True)
    outcome(module, example(), True, True, second=False)
    assert len(seen) == 1 and not seen[0][..., :24].any() and seen[0][..., 24:].any()


def alike(y, expected):
    return (y.dtype, y.shape) == (expected.dtype, expected.shape) and torch.allclose(y, expected, rtol=1e-10)


@pytest.mark.parametrize("name", attention_families.MAKERS)
def test_inputs_that_the_code_does_not_expect(name):
    """Other ranks and sizes, integers, complex numbers, no images: what its own forward does, errors included."""
    theirs, x = attention(name), example()
    ours = accelerated(theirs)
    inputs = [
        x[0],
        x[None],
        x[:0],
        x[:, :0],
        x[:, :1],
        x[..., :4],
        x.long(),
        x.to(torch.complex128),
        x.float(),
        x.mT.mT,
    ]
    inputs += [x.to_sparse(), torch.ones(DIM, dtype=torch.float64), nn.Parameter(x), x[:, ::2], x.flip(1)]
    for mode in (False, True):
        explain(ours, mode)
        explain(theirs, mode)
        for value in inputs:
            same_or_raised(partial(ours, value), partial(theirs, value), alike)


@pytest.mark.parametrize("name", ["early", "late"])
def test_copies_and_pickles(name):
    module = bk.accelerate(attention(name))
    expected = outcome(copy.deepcopy(module), example(), True, True)
    for other in (copy.deepcopy(module), *(pickle.loads(pickle.dumps(module, p)) for p in (2, 5))):
        assert is_accelerated(other) and type(other) is type(module)
        for key, value in outcome(other, example(), True, True).items():
            assert torch.equal(value, expected[key]), key
        assert type(bk.restore(other)) is type(attention(name))
    fresh = attention(name)
    fresh.load_state_dict(module.state_dict())
    assert list(fresh.state_dict()) == list(module.state_dict())


class Other(Early):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_is_left_alone_counted_and_told():
    def build():
        with accelerate_as_built():
            model = nn.Sequential(attention("early"), attention("late"))
            model.append(Other(DIM, 2, 6, linear_layer=nn.Linear, norm_layer=nn.LayerNorm))
            model[0](example())
            model[0].to_qkv = nn.Linear(DIM, 35).double()
            with pytest.raises(Exception, match="Shape mismatch"):
                model[0](example())

    why = "the code of Other.forward is not among the published attentions"
    plainly = "its to_qkv gives the shape (3, 7, 35), and it has 2 heads"
    told = counted(build)
    assert told == {
        ("accelerated", "attention", ""): 2, ("left alone, a attention", "Other", why): 1,
        ("ran plain", "Attention", plainly): 1,
    }  # fmt: skip
    assert tally.words([told]).splitlines()[1:] == [
        "  2 attentions accelerated",
        f"  left alone: 1 attention of Other: {why}",
        f"  ran plain: 1 call of Attention: {plainly}",
    ]
    assert reason(nn.Sequential(Other(DIM, 2, 6, linear_layer=nn.Linear, norm_layer=nn.Identity))).startswith(why)
    with pytest.warns(UserWarning, match="2 attentions are accelerated, but no B-cos layer: it has no B-cos layers"):
        bk.accelerate(nn.Sequential(attention("early"), attention("late")))


def test_an_attention_without_an_explanation_mode_is_nobodys():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_qkv, self.attend = nn.Linear(4, 4), nn.Softmax(-1)

    assert not bk.report(bk.accelerate(nn.Sequential(Plain()))).rows


@pytest.mark.slow
def test_compilers_and_transforms_see_the_attentions_own_operators():
    """This is no reason to report."""
    module, x = accelerated(attention("early", torch.float32)).eval(), example(dtype=torch.float32)
    expected = module(x)
    torch._dynamo.reset()

    def run():
        compiled = torch.compile(module, backend="aot_eager")
        exported = torch.export.export(module, (x,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module, x, check_trace=False)
        for program in (compiled, exported.module(), traced):
            assert torch.allclose(program(x), expected, rtol=1e-4, atol=1e-6)
        assert torch.allclose(torch.func.vmap(module)(x[:, None])[:, 0], expected, rtol=1e-4, atol=1e-6)
        _, tangent = torch.func.jvp(module, (x,), (x,))
        assert tangent.isfinite().all()
        (torch.func.grad(lambda t: module(t).sum())(x)).sum()

    assert not counted(run)


def test_late_is_a_mode_of_the_backward():
    module = accelerated(attention("late"))
    assert isinstance(module, Late)
    x = example().requires_grad_()
    y = module(x)
    explain(module, True)
    torch.autograd.grad(y.sum(), module.to_qkv.weight)
    (dw,) = torch.autograd.grad(module(x).sum(), module.to_qkv.weight)
    assert not dw[:24].any() and dw[24:].any()
