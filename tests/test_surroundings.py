"""What stands around a layer changes none of its numbers: derived classes, inference mode, uses of its output."""

import copy
from contextlib import nullcontext

import pytest
import torch
from families import example
from torch import nn
from torch.autograd.graph import allow_mutation_on_saved_tensors, save_on_cpu, saved_tensors_hooks

import bcos_kernels as bk
from bcos_kernels import tally
from bcos_kernels.compat import import_reference

M = import_reference().modules


def halved(cls, by_name):
    """A class derived from that of an accelerated layer, which calls the forward of its base."""

    class Halved(cls):
        if by_name:

            def forward(self, x):
                return super(Halved, self).forward(x) / 2  # noqa: UP008
        else:

            def forward(self, x):
                return super().forward(x) / 2

    return Halved


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_restore_of_a_class_derived_from_an_accelerated_one(by_name, depth):
    layer = bk.accelerate(M.BcosLinear(6, 4, dtype=torch.float64))
    x = example(layer)
    expected = layer(x) / 2**depth
    derived = type(layer)
    for _ in range(depth):
        derived = halved(derived, by_name)
    layer.__class__ = derived
    model = nn.Sequential(layer)
    model.append(M.BcosLinear(4, 4))
    for change in (bk.restore, copy.deepcopy, bk.accelerate, bk.accelerate, bk.restore):
        model = change(model)
        assert isinstance(model[0], derived)
        assert torch.allclose(model[0](x), expected, rtol=1e-12)
    assert bk.report(model).accelerated == 0


RESULTS = {
    "linear": (M.BcosLinear(6, 4), (2, 3, 6)),
    "tokens": (M.norms.DetachableLayerNorm((3, 6)), (2, 3, 6)),
    "strided norm": (M.norms.PositionNormUncentered2d(6), (2, 4, 4, 6)),
    "one image": (bk.BcosConv2d(6, 4, 3), (6, 5, 5)),
    "one axis": (bk.BcosConv1d(6, 4, 3), (2, 6, 5)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_without_gradients_is_changed_with_them(name):
    """As frozen features are to which something learned is added in place."""
    module, shape = RESULTS[name]
    module = bk.accelerate(nn.Sequential(copy.deepcopy(module), M.BcosLinear(1, 1)))[:1]
    if name == "tokens":
        module[0].set_explanation_mode(True)  # outside of it torch's own norm serves
    x = torch.rand(shape)
    x = x.permute(0, 3, 2, 1) if name == "strided norm" else x
    learned = torch.ones((), requires_grad=True)
    for _ in range(2):
        with torch.no_grad():
            y = module(x)
        y += learned
        (gradient,) = torch.autograd.grad(y.sum(), learned)
        assert gradient == y.numel()


@pytest.mark.parametrize("saving", [save_on_cpu, allow_mutation_on_saved_tensors, nullcontext])
@pytest.mark.parametrize("name", ["linear", "batch norm"])
def test_second_and_third_derivatives_with_hooks_on_saved_tensors(name, saving):
    """A gradient penalty whose graph is kept elsewhere. Afterwards the hooks see what is saved, as before."""
    make, shape = {
        "linear": (lambda: M.BcosLinear(6, 4, b=1.5), (3, 6)),
        "batch norm": (lambda: M.norms.BatchNormUncentered2d(6), (2, 6, 3, 3)),
    }[name]
    theirs, x = make().double(), torch.rand(shape, dtype=torch.float64, requires_grad=True)
    results, packed = [], []
    for layer in (bk.accelerate(copy.deepcopy(theirs)), theirs):
        tensors = x, next(layer.parameters())
        with saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
            with saving():
                (dx,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
                second = torch.autograd.grad(dx.square().sum(), tensors, create_graph=True)
                results.append([*second, *torch.autograd.grad(second[0].sin().sum(), tensors)])
            packed.clear()
            x.sin()
            assert packed == [x]
    for mine, yours in zip(*results, strict=True):
        assert torch.allclose(mine, yours, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("inside", ["enable_grad", "vmap"])
def test_gradients_enabled_in_inference_mode(late, inside):
    """Autograd records nothing there, and torch's own layers raise no error."""
    weight = torch.rand(4, 6, requires_grad=True)

    def layer(x):
        return bk.functional.bcos_linear(x, weight, detach={"fixed_weights": False} if late else False)

    x = torch.rand(3, 6)
    expected = layer(x)
    with torch.inference_mode(), torch.enable_grad():
        y = layer(x) if inside == "enable_grad" else torch.vmap(layer)(x)
    assert torch.allclose(y, expected) and y.is_inference() and not y.requires_grad
    norm = bk.accelerate(M.norms.BatchNormUncentered2d(6))
    with torch.inference_mode(), torch.enable_grad():
        assert not norm(torch.rand(2, 6, 3, 3)).requires_grad


def test_distributed_tensors(one_process):
    """DTensor has no rules for the operators of this package: torch's own compute the layer, as without it."""
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    plain = nn.Sequential(M.BcosLinear(6, 8), M.norms.DetachableLayerNorm(8), M.BcosLinear(8, 4, b=1.5)).double()
    x = torch.rand(3, 6, dtype=torch.float64, requires_grad=True)
    plain(x).square().sum().backward()
    own = copy.deepcopy(plain)
    for index, b in ((0, 2), (2, 1.5)):
        layer = bk.BcosLinear(*plain[index].linear.weight.shape[::-1], b=b).double()
        layer.load_state_dict(plain[index].state_dict())
        own[index] = layer
    before = tally.current()
    for model in (bk.accelerate(copy.deepcopy(plain)), own):
        model.zero_grad()
        model = distribute_module(model, mesh)
        sharded = distribute_tensor(x.detach(), mesh, [Shard(0)]).requires_grad_()
        model(sharded).square().sum().backward()
        assert torch.allclose(sharded.grad.full_tensor(), x.grad, rtol=1e-10)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours.grad.full_tensor(), theirs.grad, rtol=1e-10)
    assert "its input or its weight is a DTensor" in str(tally.current() - before)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_an_exponent_that_is_annealed_under_a_compiler(backend):
    """After its first change the compiler takes it for a symbol."""
    torch._dynamo.reset()
    layer = bk.accelerate(M.BcosLinear(6, 4, dtype=torch.float64), backend=backend)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = example(layer)
    for layer.b in (2, 1.5, 1.75, 1, 2.5):
        y = compiled(x)
        assert torch.allclose(y, layer(x), rtol=1e-12)
        (gradient,) = torch.autograd.grad(y.sum(), layer.linear.weight)
        assert gradient.isfinite().all()
