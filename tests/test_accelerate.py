"""accelerate, restore, report: everything is kept that must be, and what was done is told."""

import copy
import io
import pickle
import types

import families
import pytest
import torch
from families import Doubled, OwnForward, X, assert_close, example, is_accelerated, net, outcome
from torch import nn
from torch.nn.utils import prune

import bcos_kernels as bk
from bcos_kernels import tally
from bcos_kernels.adopt import Row, accelerate_as_built
from bcos_kernels.compat import import_reference

bcos = import_reference()
M = bcos.modules


def test_identity_class_and_restore():
    model = net()
    before = list(model.modules())
    kinds, shown = [type(m) for m in before], repr(model)
    expected = model(X)
    assert bk.accelerate(model) is model
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))
    assert all(isinstance(m, kind) for m, kind in zip(before, kinds, strict=True))
    assert repr(model) == shown
    assert [vars(m).keys() for m in before] == [vars(m).keys() for m in net().modules()]
    assert bk.restore(model) is model
    assert [type(m) for m in before] == kinds
    assert torch.equal(model(X), expected)


def test_root_may_be_a_layer_and_twice_is_once():
    layer = M.BcosLinear(6, 4)
    bk.accelerate(bk.accelerate(layer), backend="reference")
    assert bk.report(layer).rows[0] == Row("(model)", "BcosLinear", "reference")
    assert type(bk.restore(layer)) is M.BcosLinear


def test_state_dict_both_ways():
    plain, fused = net(0), bk.accelerate(net(1))
    assert list(plain.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    assert_close({"y": fused(X).detach()}, {"y": plain(X).detach()})
    other = net(2)
    other.load_state_dict(fused.state_dict())
    assert torch.equal(other(X), plain(X))


def test_optimizer_built_before():
    """The same steps from the same seed, the optimizer older than the acceleration."""
    plain, fused = net(), net()
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (plain, fused)]
    bk.accelerate(fused)
    for step in range(5):
        for model, optimizer in zip((plain, fused), optimizers, strict=True):
            optimizer.zero_grad()
            model(X + step).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-8)


def test_hooks_on_the_layer():
    model = net()
    seen = []
    model[0].register_forward_hook(lambda m, args, out: seen.append("before"))
    model[0].register_full_backward_hook(lambda m, gin, gout: seen.append("backward"))
    bk.accelerate(model)
    model[0].register_forward_pre_hook(lambda m, args: seen.append("after"))
    model(X.clone().requires_grad_()).sum().backward()
    assert seen == ["after", "before", "backward"]


def test_hooks_on_the_linear_part_fire():
    """A hook inside makes the layer run its own forward; without it the fused one serves again."""
    model = bk.accelerate(net())
    seen = []
    handle = model[0].linear.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    expected = bk.restore(copy.deepcopy(model))(X)
    assert torch.allclose(model(X), expected, rtol=1e-12)
    assert len(seen) == 1 + 1  # the copy carries the hook too
    assert bk.report(model).rows[0].reason == "its .linear has a hook"
    handle.remove()
    model(X)
    assert len(seen) == 2
    assert bk.report(model).accelerated == 3


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_every_kind_of_hook_inside_fires(kind):
    model, seen = bk.accelerate(net()), []
    getattr(model[2].linear, f"register_{kind}_hook")(lambda *_: seen.append(kind))
    model(X).sum().backward()
    assert seen == [kind]


def test_global_hooks_see_the_parts():
    model = bk.accelerate(net())
    seen = []
    with_hook = torch.nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(m))
    try:
        model(X)
    finally:
        with_hook.remove()
    assert any(m is model[0].linear for m in seen)


def test_weight_norm_pruning_and_parametrization():
    for change in (
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        nn.utils.parametrizations.spectral_norm,
    ):
        torch.manual_seed(0)
        layer = M.BcosLinear(6, 4, dtype=torch.float64).eval()
        change(layer.linear)
        layer.eval()
        x = example(layer)
        expected = layer(x)
        bk.accelerate(layer)
        assert torch.allclose(layer(x), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["v1", "late conv", "minimal", "bcosify clamped", "dilated"])
def test_deepcopy_pickle_and_save(name, monkeypatch):
    families.publish(monkeypatch)
    layer = {**families.layers(1.5), "dilated": M.BcosConv2d(6, 4, 3, dilation=2).double()}[name]
    bk.accelerate(layer)
    x = example(layer)
    expected = outcome(layer, x)
    if name == "dilated":
        buffer = io.BytesIO()
        torch.save(nn.Sequential(layer), buffer)
        buffer.seek(0)
        copies = [pickle.loads(pickle.dumps(layer, p)) for p in (1, 2, 5)]
        copies += [torch.load(buffer, weights_only=False)[0]]
    else:
        copies = [copy.deepcopy(layer), copy.copy(layer)]
    for other in copies:
        assert is_accelerated(other)
        assert type(other) is type(layer)
        assert_close(outcome(other, x), expected, rtol=0)
        assert type(bk.restore(other)).__mro__[0] is type(layer).__bases__[0]


def test_a_copy_keeps_a_class_that_was_derived_from_the_accelerated_one():
    layer = bk.accelerate(M.BcosLinear(6, 4, dtype=torch.float64))

    class Halved(type(layer)):
        def forward(self, x):
            return super().forward(x) / 2

    x = example(layer)
    expected = layer(x) / 2
    layer.__class__ = Halved
    for made in (layer, copy.deepcopy(layer), copy.copy(layer)):
        assert type(made) is Halved and torch.allclose(made(x), expected, rtol=1e-12)


def test_a_copy_is_independent():
    model = bk.accelerate(net())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].linear.weight.mul_(-1).add_(1)
    assert not torch.allclose(other(X), model(X))


def test_to_another_dtype():
    model = bk.accelerate(net())
    expected = model(X)
    model.to(torch.float32)
    y = model(X.float())
    assert y.dtype == torch.float32
    assert torch.allclose(y.double(), expected, rtol=1e-4, atol=1e-6)
    assert bk.report(bk.accelerate(M.BcosLinear(3, 3)).to("meta")).accelerated == 1


def test_explanation_mode_and_explain_of_bcos():
    class Classifier(bcos.BcosUtilMixin, nn.Sequential):
        pass

    torch.manual_seed(0)
    parts = [
        M.BcosConv2d(6, 8, 3, padding=1),
        M.BcosConv2d(8, 5, 3, b=1.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    plain = Classifier(*parts).double().eval()
    with plain.explanation_mode():  # bcos caches the modules it finds on the first entry
        pass
    image = torch.rand(1, 6, 24, 24, dtype=torch.float64)
    theirs = plain.explain(image.clone().requires_grad_())
    with bcos.explanation_mode(plain):
        their_modes = [m.detach for m in plain.modules() if hasattr(m, "detach")]
    bk.accelerate(plain)
    ours = plain.explain(image.clone().requires_grad_())
    assert ours["prediction"] == theirs["prediction"]
    for key in ("dynamic_linear_weights", "contribution_map"):
        assert_close({key: ours[key]}, {key: theirs[key]})
    with bcos.explanation_mode(plain):
        assert [m.detach for m in plain.modules() if hasattr(m, "detach")] == their_modes == [True, True]
        assert all(plain[i].is_in_explanation_mode for i in (0, 1))
    assert not any(plain[i].is_in_explanation_mode for i in (0, 1))
    # the explained logit is the dynamic linear map applied to the image
    weights, y = ours["dynamic_linear_weights"], plain(image).max().detach()
    assert torch.allclose((weights * image).sum(), y, rtol=1e-10)


def test_values_are_read_at_each_call():
    model, other = net(), bk.accelerate(net())
    for change in (
        lambda m: setattr(m[0], "detach", True),
        lambda m: setattr(m[0], "b", 2.5),
        lambda m: setattr(m[2], "b", 2),
        lambda m: setattr(m[0], "b", 0.5),
        lambda m: m[0].linear.weight.data.mul_(2).add_(0.1),
        lambda m: setattr(m[4], "linear", Doubled(24, 5, dtype=torch.float64)),
        lambda m: m[4].linear.load_state_dict({"weight": torch.ones(5, 24), "bias": torch.ones(5)}),
        lambda m: setattr(m[0], "calc_patch_norms", lambda patches: patches.new_ones(1)),
    ):
        for m in (model, other):
            torch.manual_seed(3)
            change(m)
        inputs = [X.clone().requires_grad_() for _ in range(2)]
        ys = [m(x) for m, x in zip((model, other), inputs, strict=True)]
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y, x in zip(ys, inputs, strict=True)]
        assert_close({"y": ys[1].detach(), "dx": grads[1]}, {"y": ys[0].detach(), "dx": grads[0]})


def test_forward_may_be_assigned_and_taken_back():
    layer = bk.accelerate(M.BcosLinear(6, 4))
    layer.forward = lambda x: x * 0
    assert torch.equal(layer(torch.ones(2, 6)), torch.zeros(2, 6))
    assert bk.report(layer).rows[0].reason == "its forward was assigned on the instance"
    del layer.forward
    assert layer(torch.ones(2, 6)).shape == (2, 4)
    assert bk.report(layer).accelerated == 1


def test_a_class_patched_later_is_obeyed(monkeypatch):
    layer = bk.accelerate(M.BcosLinear(6, 4))
    monkeypatch.setattr(M.BcosLinear, "forward", lambda self, x: x + 1)
    assert torch.equal(layer(torch.zeros(2, 6)), torch.ones(2, 6))
    assert not is_accelerated(bk.accelerate(M.BcosLinear(6, 4)))
    monkeypatch.undo()
    assert layer(torch.zeros(2, 6)).shape == (2, 4)


def test_forward_takes_keywords_as_before():
    layer = bk.accelerate(M.BcosLinear(6, 4))
    x = torch.randn(2, 6)
    assert torch.allclose(layer(in_tensor=x), layer(x), rtol=1e-5)
    with pytest.raises(TypeError):
        layer(x, x)


def test_data_parallel_replica():
    """A replica as nn.DataParallel makes it: a copied dict, its weights plain tensors."""
    layer = bk.accelerate(M.BcosLinear(6, 4, dtype=torch.float64))
    x = example(layer)
    replica = layer._replicate_for_data_parallel()
    inner = layer.linear._replicate_for_data_parallel()
    inner._parameters = {"bias": None}
    inner.weight = layer.linear.weight.clone()
    replica._modules["linear"] = inner
    assert is_accelerated(replica)
    assert torch.equal(replica(x), layer(x))
    assert torch.equal(nn.DataParallel(layer)(x), layer(x))


def test_distributed_data_parallel(one_process):
    plain, model = net(), net()
    wrapped = nn.parallel.DistributedDataParallel(bk.accelerate(model))
    wrapped(X).square().sum().backward()
    plain(X).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10)


@pytest.mark.parametrize("order", ["accelerated first", "sharded first"])
def test_fully_sharded(one_process, order):
    """FSDP2 puts a class of its own on top of each module's, or ours goes on top of that."""
    from torch.distributed.fsdp import fully_shard

    plain, model = net(), net()
    if order == "accelerated first":
        bk.accelerate(model)
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for layer in (model[0], model[2], model[4], model):
        fully_shard(layer, mesh=mesh)
    bk.accelerate(model)
    assert bk.report(model).accelerated == 3
    for module in (model, plain):
        module(X).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad.full_tensor(), theirs.grad, rtol=1e-10)
    bk.restore(model)
    assert bk.report(model).accelerated == 0
    assert type(model[0]).__name__ == "FSDPBcosConv2d"
    assert torch.allclose(model(X), plain(X), rtol=1e-10)


def test_weights_that_are_buffers():
    layer = M.BcosLinear(6, 4, dtype=torch.float64)
    weight = layer.linear.weight.detach()
    del layer.linear.weight
    layer.linear.register_buffer("weight", weight)
    x = example(layer)
    expected = outcome(layer, x)
    bk.accelerate(layer)
    assert is_accelerated(layer)
    assert_close(outcome(layer, x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = net(dtype=torch.float32)[:1]
    with torch.autocast("cpu", dtype):
        theirs = model(X.float()).dtype
        assert bk.accelerate(model)(X.float()).dtype == theirs == torch.float32
        assert bk.accelerate(model, out_dtype=dtype)(X.float()).dtype == dtype
    assert model(X.float()).dtype == torch.float32


@pytest.mark.slow
def test_torch_compile_takes_the_whole_graph():
    model = bk.accelerate(net(dtype=torch.float32))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(X.float()), model(X.float()), rtol=1e-5)


@pytest.mark.slow
def test_traced_exported_and_compiled_one_after_the_other():
    """Each of them changes for its own time how modules are called: none is taken for a change of the layers."""
    model, x = bk.accelerate(net(dtype=torch.float32)), X.float()
    expected = model(x)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x), buffer)
    buffer.seek(0)
    traced = torch.jit.load(buffer)
    exported = torch.export.export(model, (x,))
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for program in (traced, exported.module(), compiled):
        assert torch.allclose(program(x), expected, rtol=1e-5)
    names = [str(node.target) for node in exported.graph.nodes]
    assert sum(name.startswith("bcos_kernels.") for name in names) == 3
    assert sum(node.kind().startswith("bcos_kernels::") for node in traced.inlined_graph.nodes()) == 3


@pytest.mark.slow
def test_an_unpickled_model_compiles_without_a_graph_break():
    """In another process its code was never read before."""
    from bcos_kernels.adopt import published

    pickled = pickle.dumps(bk.accelerate(net(dtype=torch.float32)))
    published.CODES.clear()
    torch._dynamo.reset()
    model = pickle.loads(pickled)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(X.float()), model(X.float()), rtol=1e-5)


def test_layers_are_accelerated_as_they_are_built():
    before = tally.current()
    with accelerate_as_built():
        model = net()
        holder = nn.Module()
        holder.odd = OwnForward(3, 3)
        holder.again = model[0]
    outside = net()
    alone = ("left alone", "OwnForward", "the code of OwnForward.forward is not among the published layers")
    assert tally.current() - before == {("accelerated", "", ""): 3, alone: 1}
    assert bk.report(model).accelerated == 3
    assert not any(is_accelerated(m) for m in outside)
    assert_close({"y": model(X).detach()}, {"y": outside(X).detach()})


def test_classes_made_with_methods_on_the_instance():
    """The dilated layer binds its slow norm to itself; the copy's must belong to the copy."""
    layer = bk.accelerate(M.BcosConv2d(6, 4, 3, dilation=2))
    other = copy.deepcopy(layer)
    assert isinstance(other.calc_patch_norms, types.MethodType)
    assert other.calc_patch_norms.__self__ is other
    assert bk.report(other).accelerated == 1
