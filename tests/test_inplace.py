"""Outputs changed in place: the reference trains through ``out += identity`` and ``ReLU(inplace=True)``; so do we."""

from contextlib import nullcontext

import pytest
import torch
from cases import IDS, bcos, error
from torch import nn
from torch.autograd import grad
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import bcos_kernels as bk

CHANGES = {
    "add": lambda y: y.add_(1),
    "relu": lambda y: nn.functional.relu(y, inplace=True),
    "view": lambda y: y.view(-1)[::2].mul_(3),
    "part": lambda y: y[0].zero_(),
    "no_grad": lambda y: torch.no_grad()(lambda: y.mul_(2))(),
    "detached": lambda y: y.detach().mul_(2),
}


def changed(y, change):
    CHANGES[change](y)
    return y


def replaced(y, change):
    """The same change out of place: to a copy, so that what the layer saved stays as it was."""
    return changed(y.clone(), change)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["conv3x3", "max_out", "depthwise", "explain", "b1", "b1.5", "linear", "linear_3d"])
def test_output_changed_in_place(name, change):
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float64)
    results = [grad(apply(case(x, weight), change).sin().sum(), (x, weight)) for apply in (changed, replaced)]
    for mine, yours in zip(*results, strict=True):
        assert error(mine, yours) < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_output_changed_in_place_under_autocast(dtype):
    x, weight, _ = IDS["conv3x3"].inputs(torch.float32)
    results = []
    for apply in (changed, replaced):
        with torch.autocast("cpu", torch.bfloat16):
            y = apply(IDS["conv3x3"](x, weight, out_dtype=dtype), "add")
        results.append((y, *grad(y.float().sin().sum(), (x, weight))))
    for mine, yours in zip(*results, strict=True):
        assert torch.equal(mine, yours)


@pytest.mark.parametrize("detach", [False, True, "late"])
def test_output_changed_in_place_and_differentiated_twice(detach):
    case, results = IDS["conv3x3"], []
    for apply in (changed, replaced):
        state = {"fixed_weights": False}
        x, weight, _ = case.inputs(torch.float64)
        y = apply(case(x, weight, detach=state if detach == "late" else detach), "add")
        state["fixed_weights"] = True
        (explanation,) = grad(y.sin().sum(), x, create_graph=True)
        state["fixed_weights"] = False
        results.append(grad(explanation.square().sum() + y.sum(), (x, weight)))
    for mine, yours in zip(*results, strict=True):
        assert error(mine, yours) < 1e-12


def test_a_second_backward_after_the_change():
    x, weight, _ = IDS["conv3x3"].inputs(torch.float64)
    y = changed(IDS["conv3x3"](x, weight), "add").sum()
    first, second = (grad(y, (x, weight), retain_graph=keep) for keep in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        grad(y, x)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("also_output", [False, True])
def test_a_changed_input_or_weight_is_an_error_not_a_wrong_gradient(which, also_output):
    inputs = [t * 1 for t in IDS["conv3x3"].inputs(torch.float32)[:2]]
    y = IDS["conv3x3"](*inputs)
    if also_output:
        y += 1
    inputs[which] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class Block(nn.Module):
    """A residual block without norms, as in ``bcos``'s networks with ``norm_layer=None``."""

    def __init__(self, layer):
        super().__init__()
        self.conv1, self.conv2 = layer(4, 4, 3, padding=1), layer(4, 4, 3, padding=1)

    def forward(self, x):
        out = self.conv2(self.conv1(x))
        out += x
        return out


def vgg(layer):
    """The pattern of torchvision's vgg: an activation in place right behind each layer."""
    layers = []
    for inputs, outputs in ((4, 8), (8, 8), (8, 4)):
        layers += [layer(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def keeping_all():
    return saved_tensors_hooks(lambda t: t, lambda t: t)


@pytest.mark.parametrize("saving", ["plain", "checkpoint", "reentrant", "save_on_cpu", "hooks", "compiled"])
@pytest.mark.parametrize("make", [Block, vgg])
def test_networks_that_change_outputs_in_place_train_as_the_reference(make, saving):
    theirs, ours = make(bcos.modules.BcosConv2d).double(), make(bk.BcosConv2d).double()
    ours.load_state_dict(theirs.state_dict())
    hooks = {"save_on_cpu": save_on_cpu, "hooks": keeping_all}.get(saving, nullcontext)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    results = []
    for network in (ours, theirs):
        run = network
        if network is ours and saving == "compiled":
            torch._dynamo.reset()
            run = torch.compile(network, fullgraph=True, backend="aot_eager")
        elif network is ours and saving in ("checkpoint", "reentrant"):
            run = lambda x, net=network: checkpoint(net, x, use_reentrant=saving == "reentrant")  # noqa: E731
        image = x.clone().requires_grad_()
        with hooks():
            y = run(image * 1)
        y.sin().sum().backward()
        results.append((y, image.grad, *(p.grad for p in network.parameters())))
    for mine, yours in zip(*results, strict=True):
        assert error(mine, yours) < 1e-11


@pytest.mark.parametrize("detach", [False, True, {"fixed_weights": False}])
def test_an_error_of_a_hook_on_saved_tensors_reaches_the_caller(detach):
    def gone(packed):
        raise RuntimeError("the file was removed")

    x, weight, _ = IDS["conv3x3"].inputs(torch.float32)
    with saved_tensors_hooks(lambda t: None, gone):
        y = IDS["conv3x3"](x, weight, detach=detach)
    with pytest.raises(RuntimeError, match="the file was removed"):
        y.sum().backward()


def test_nothing_is_kept_beside_the_saved_tensors():
    """Hooks that throw away what they see leave no memory behind: nothing large hides on the node."""
    import gc
    import weakref

    x, weight, _ = IDS["conv3x3"].inputs(torch.float32)
    with saved_tensors_hooks(lambda t: None, lambda packed: None):
        y = IDS["conv3x3"](x, weight)
    output, node = weakref.ref(y.untyped_storage()), y.grad_fn
    del y
    gc.collect()
    assert node is not None and output() is None
