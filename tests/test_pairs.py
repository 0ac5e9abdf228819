"""``accelerate(model, pairs=True)``: gradients stay what they are, whatever autograd is asked."""

import copy
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pairs_checks import LAYERS, NORMS, check_pair, error, formed, gradients, image, model  # noqa: F401
from torch import nn
from torch.autograd import grad
from torch.utils.checkpoint import checkpoint

import bcos_kernels as bk
from bcos_kernels import _C
from bcos_kernels.core import pairs
from bcos_kernels.transform.call import of_shapes
from benchmarks import networks


@pytest.mark.parametrize("mode", ["training", "evaluation", "explanation"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients(layer, norm, dtype, layout, mode, formed):  # noqa: F811
    check_pair(layer, norm, dtype, layout, mode, "cpu", formed)


@pytest.fixture
def both():
    made = model("conv3x3", "batch")
    return bk.accelerate(copy.deepcopy(made)), bk.accelerate(copy.deepcopy(made), pairs=True)


def test_a_bias_of_the_layer(formed):  # noqa: F811
    made = model("conv3x3", "batch")
    made[0] = bk.modules.BcosConv2d(6, 8, 3, bias=True, dtype=torch.float64)
    alone, paired = (bk.accelerate(copy.deepcopy(made), pairs=pairs) for pairs in (False, True))
    assert error(gradients(paired, image(made)), gradients(alone, image(made))) < 1e-13
    assert formed == [True]


def test_a_backward_that_is_compiled_leaves_nothing(both):
    """Compiled autograd, whose graph has no nodes that could be asked: the norm forms dx itself."""
    from torch._dynamo import compiled_autograd

    alone, paired = both
    x = image(alone)
    expected = gradients(alone, x)
    for made in (alone, paired):
        with compiled_autograd._enable(torch.compile(backend="eager")):
            assert error(gradients(made, x), expected) < 1e-13


def test_patches_whose_outputs_underflow(formed):  # noqa: F811
    """There y does not stand for l, which the layer computes again."""
    made = model("conv3x3", "batch", torch.float32)
    x = image(made).detach()
    x[0] *= 1e-25
    alone, paired = (bk.accelerate(copy.deepcopy(made), pairs=pairs) for pairs in (False, True))
    assert error(gradients(paired, x), [t.double() for t in gradients(alone, x)]) < 1e-5
    assert formed == [True]


def test_a_whole_residual_block(formed):  # noqa: F811
    """The second norm's output is added to the input, which also feeds the first layer."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first, second = model("conv3x3", "batch"), model("depthwise", "all")
            self.in_channels = 6
            self.layers = nn.ModuleList([*first[:2], *second[:2]])
            self.skip = model("conv1x1", "batch")[0]

        def forward(self, x):
            y = x
            for layer in self.layers:
                y = layer(y)
            return y + self.skip(x)

    torch.manual_seed(0)
    made = Block()
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    alone, paired = (bk.accelerate(copy.deepcopy(made), pairs=pairs) for pairs in (False, True))
    assert error(gradients(paired, x), gradients(alone, x)) < 1e-13
    assert formed == [True, True]


def test_hooks_and_retained_gradients_of_the_output_see_its_gradient(both, formed):  # noqa: F811
    x = image(both[0])

    def seen(made, watch):
        y = made[0](x)
        found = watch(y)
        made[2](made[1](y)).pow(3).sum().backward()
        return found[0] if found else y.grad

    def hooked(y):
        found = []
        y.register_hook(found.append)
        return found

    for watch in (lambda y: y.retain_grad(), hooked):
        truth, found = (seen(made, watch) for made in both)
        assert torch.allclose(found, truth, rtol=1e-12, atol=0) and truth.abs().sum() > 0
    assert formed == [False, False]


@pytest.mark.parametrize("kind", ["register_prehook", "register_hook"])
def test_hooks_of_the_node_that_made_the_output_see_its_gradient(kind, both, formed):  # noqa: F811
    def seen(made):
        found = []
        y = made[0](image(made))
        getattr(y.grad_fn, kind)(lambda *gradients: found.append(gradients[-1][0].clone()))
        made[2](made[1](y)).pow(3).sum().backward()
        return found[0]

    truth, found = map(seen, both)
    assert torch.allclose(found, truth, rtol=1e-12, atol=0) and truth.abs().sum() > 0
    assert formed == [False]


def test_a_layer_whose_input_must_be_seen(both, formed):  # noqa: F811
    """A view that negates, as parts of conjugated complex tensors are, goes through the operators."""

    def found(made):
        x = image(made)
        made(torch._neg_view(x)).pow(3).sum().backward()
        return [x.grad, made[0].linear.weight.grad]

    truth, mine = map(found, both)
    assert error(mine, truth) < 1e-12
    assert formed == [True]


def test_a_gradient_with_respect_to_the_output_alone(both, formed):  # noqa: F811
    def found(made):
        y = made[0](image(made))
        return grad(made[1](y).pow(3).sum(), y)[0]

    truth, mine = map(found, both)
    assert torch.allclose(mine, truth, rtol=1e-12, atol=0)
    assert formed == [False]


def test_a_second_use_of_the_output_is_an_error(both):
    alone, paired = both

    def loss(made):
        y = made[0](image(made))
        return made[1](y).pow(3).sum() + y.sum()

    loss(alone).backward()
    with pytest.raises(RuntimeError, match="pairs=True: something beside the norm"):
        loss(paired).backward()
    assert error(gradients(paired, image(paired)), gradients(alone, image(alone))) < 1e-13, "the next step is right"


def test_what_was_left_is_taken_once_and_for_the_gradient_that_it_was_left_with():
    grad, gradient_map = torch.ones(2, 3), torch.ones(4, 3)
    ctx = SimpleNamespace(left=pairs.Left(grad, grad._version, gradient_map))
    assert pairs.left(ctx, grad) is gradient_map and pairs.left(ctx, grad) is None
    for arrives in (lambda: grad.clone(), lambda: None, lambda: grad.mul_(2)):
        ctx.left = pairs.Left(grad, grad._version, gradient_map)
        with pytest.raises(RuntimeError, match="pairs=True: something beside the norm"):
            pairs.left(ctx, arrives())


def test_the_extension_takes_what_was_left_once_and_for_that_gradient():
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    y = bk.BcosConv2d(3, 5)(x)
    grad, expected = torch.ones_like(y), torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0]
    gradient_map = torch.stack([torch.full((5,), value) for value in (2.0, 0.0, 0.0, 0.0)])
    _C.leave(y, grad, gradient_map, "not this one")
    for factor in (2, 1):
        assert torch.allclose(torch.autograd.grad(y, x, grad, retain_graph=True)[0], factor * expected)
    for arrives in (grad.clone, lambda: grad.mul_(2)):
        _C.leave(y, grad, gradient_map, "not this one")
        with pytest.raises(RuntimeError, match="not this one"):
            torch.autograd.grad(y, x, arrives(), retain_graph=True)


def test_two_norms_behind_one_layer_are_an_error():
    made = bk.accelerate(model("conv3x3", "batch"), pairs=True)
    other = bk.accelerate(model("conv3x3", "batch"), pairs=True)[1]
    y = made[0](image(made))
    with pytest.raises(RuntimeError, match="pairs=True"):
        (made[1](y) * other(y)).sum().backward()


def test_what_stands_between_layer_and_norm_ends_the_pair(both, formed):  # noqa: F811
    def found(made, between):
        x = image(made)
        made[2](made[1](between(made[0](x)))).pow(3).sum().backward()
        return x.grad

    for between in (lambda y: y + 1, lambda y: y.view_as(y), lambda y: y.relu()):
        truth, mine = (found(made, between) for made in both)
        assert torch.allclose(mine, truth, rtol=1e-12, atol=1e-14)
    assert formed == [False] * 3


def test_an_output_changed_in_place_before_the_norm(both, formed):  # noqa: F811
    def found(made):
        x = image(made)
        made[1](made[0](x).mul_(2)).pow(3).sum().backward()
        return x.grad

    truth, mine = map(found, both)
    assert torch.allclose(mine, truth, rtol=1e-12, atol=1e-14)
    assert formed == [False]


@pytest.mark.parametrize("explains", [False, True])
def test_gradients_of_gradients(explains, both, formed):  # noqa: F811
    """A penalty on the gradient of the input, or on the explanation: what is recorded is formed by the norm itself."""

    def found(made):
        x = image(made)
        for part in made[:2]:
            part.set_explanation_mode(explains)
        (g,) = grad(made(x).pow(3).sum(), x, create_graph=True)
        made.zero_grad()
        g.pow(2).sum().backward()
        return [p.grad for p in made.parameters() if p.grad is not None]

    truth, mine = map(found, both)
    assert error(mine, truth) < 1e-12
    assert not any(formed[:1])


@pytest.mark.parametrize("explains", [False, True])
@pytest.mark.parametrize("place", ["input", "between"])
def test_a_loss_with_a_penalty_on_its_own_gradient(place, explains, both):
    """The layer's output then also gets the gradient of the penalty, and nothing may be left with the layer."""

    def found(made):
        x = image(made)
        for part in made[:2]:
            part.set_explanation_mode(explains)
        between = made[0](x)
        y = made[1](between)
        (g,) = grad(y.pow(3).sum(), x if place == "input" else between, create_graph=True)
        made.zero_grad()
        (y.pow(2).sum() + g.pow(2).sum()).backward()
        return [x.grad, *(p.grad for p in made.parameters() if p.grad is not None)]

    truth, mine = map(found, both)
    assert error(mine, truth) < 1e-12


def test_batched_gradients_and_repeated_backwards(both, formed):  # noqa: F811
    def found(made):
        x = image(made)
        y = made(x)
        rows = torch.eye(3, y.numel(), dtype=y.dtype).view(3, *y.shape)
        (batched,) = grad(y, x, rows, is_grads_batched=True, retain_graph=True)
        twice = [grad(y.pow(3).sum(), x, retain_graph=True)[0] for _ in range(2)]
        return [batched, *twice]

    truth, mine = map(found, both)
    assert error(mine, truth) < 1e-12
    assert formed[-2:] == [True, True]


def test_checkpoints_and_hooks_on_saved_tensors(both):
    def checkpointed(made):
        x = image(made)
        checkpoint(made, x, use_reentrant=False).pow(3).sum().backward()
        return x.grad

    def offloaded(made):
        x = image(made)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            y = made(x)
        y.pow(3).sum().backward()
        return x.grad

    for run in (checkpointed, offloaded):
        truth, mine = map(run, both)
        assert torch.allclose(mine, truth, rtol=1e-12, atol=1e-14)


def test_a_norm_whose_output_has_another_dtype():
    """Its gradient is then cast on its way to the layer, and would not be the one that was left."""
    made = model("conv3x3", "batch", torch.float32)
    made[0].bfloat16()
    x = image(made).detach().bfloat16()

    def found(pairs):
        network = bk.accelerate(copy.deepcopy(made), pairs=pairs)
        z = network[1](network[0](x))
        assert z.dtype is torch.float32
        z.pow(3).sum().backward()
        return network[0].linear.weight.grad

    assert torch.equal(found(True), found(False))


def test_frozen_layers_and_frozen_norms(both):
    """A layer whose weight needs no gradient, and a norm whose parameters need none."""
    for index in (0, 1):
        for made in both:
            made.requires_grad_(True)
            made[index].requires_grad_(False)
        truth, mine = ([t for t in gradients(made, image(made)) if t is not None] for made in both)
        assert error(mine, truth) < 1e-12


def test_what_keeps_the_option(both):
    """Copies and pickles keep it, and another call of accelerate sets it anew."""
    alone, paired = both
    truth = gradients(alone, image(alone))
    for again in (copy.deepcopy(paired), pickle.loads(pickle.dumps(paired)), bk.accelerate(paired)):
        assert error(gradients(again, image(again)), truth) < 1e-12


def test_a_converted_network(formed):  # noqa: F811
    torch.manual_seed(5)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    network = bk.convert(plain.double())
    x = torch.rand(2, 6, 9, 9, dtype=torch.float64)
    truth = gradients(network, x)
    assert formed == []
    assert error(gradients(bk.accelerate(network, pairs=True), x), truth) < 1e-13
    assert formed == [True, True]


@pytest.mark.slow
def test_the_cost_model_predicts_what_pairs_save(capsys):
    """A tenth of a training step of ResNet-50, the reason for the option; two further fusions would save less."""
    assert networks.main(["--models", "resnet50", "--bounds"]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("ResNet-50"))
    plain, ours, _, paired = (float(cell) for cell in first.split()[2:6])
    assert 0 < paired <= 0.9 * ours < 2 * plain
    total, statistics, _, squares, _ = (float(cell.rstrip("%")) for cell in second.split()[2:])
    assert total == ours and 0 < squares < statistics < 0.1 * ours
    with pytest.raises(SystemExit, match="2"):
        networks.main(["--images", "0"])


def test_what_sums_of_squares_from_a_norm_would_save():
    """Less than the time to read x; nothing where the products have them anyway, or where no graph serves the layer."""
    saved = [
        networks.saved_by_squares(of_shapes((256, 64, 56, 56), weight, padding=(weight[2] // 2,) * 2, groups=groups))
        for weight, groups in (((64, 64, 3, 3), 1), ((64, 64, 1, 1), 1), ((64, 2, 3, 3), 32))
    ]
    assert 0 < saved[0] < 2 * 256 * 64 * 56 * 56 / 4.3e12
    assert saved[1:] == [0, 0]


@pytest.mark.slow
def test_the_cost_model_knows_what_was_changed_in_place():
    """In a block of ResNet-50 a norm is in front of two of three layers: in front of the first, an addition wrote x."""
    calls = networks.calls_of(bk.accelerate(networks.network("resnet50")), 1, "sm_90")
    norms = {call.y for call in calls if call.kind == "norm"}
    behind = [call.call for call in calls if call.kind == "layer" and call.x in norms]
    assert len(behind) == 32 and sum(call.taps > 1 for call in behind) == 16


def test_the_extension_checks_the_map():
    spec = bk.transform.spec.Spec((1, 1), (0, 0), (1, 1))
    x, weight = torch.rand(2, 3, 4, 4), torch.rand(5, 3, 1, 1)
    y, *kept = _C.transform_forward(x, weight, None, None, spec.native)

    def backward(gradient_map, native=spec.native):
        needs = [True, True, False, False]
        return _C.transform_backward(y, x, weight, None, y, *kept, None, None, gradient_map, native, False, needs)

    backward(torch.rand(4, 5))
    with pytest.raises(ValueError, match=r"map has shape \[4, 3\], allowed: \[4, 5\]"):
        backward(torch.rand(4, 3))
    with pytest.raises(TypeError, match="map has dtype Double"):
        backward(torch.rand(4, 5).double())
    with pytest.raises(ValueError, match="map is a tensor, allowed: None, because only b = 2 reads y"):
        backward(torch.rand(4, 5), replace(spec, b=1.0).native)
    rows, alone = torch.cat([y, y]), [True, False, False, False]
    with pytest.raises(ValueError, match="map is a tensor, allowed: None beside 2 gradients an image"):
        _C.transform_backward(rows, x, weight, None, y, *kept, None, None, torch.rand(4, 5), spec.native, True, alone)
    norm = bk.norm.spec.Spec("group", 1)
    with pytest.raises(ValueError, match="as_map is true, allowed: false, because over='group'"):
        _C.norm_backward(
            x, x, None, None, None, x[:, :1, 0, 0], x[:, :1, 0, 0], None, norm.native, False, [True] * 3, True
        )


def test_what_is_no_bool_is_an_error():
    with pytest.raises(TypeError, match="pairs=1: True or False is needed"):
        bk.accelerate(model("conv3x3", "batch"), pairs=1)
