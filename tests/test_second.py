"""Second derivatives by the CPU kernels: losses on explanations and gradient penalties, and programs around them."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from cases import IDS, Budget, bcos, error
from second_checks import *  # noqa: F403  # the tests that all backends share
from torch.autograd import grad
from torch.utils._python_dispatch import BaseTorchDispatchMode
from torch.utils.checkpoint import checkpoint

import bcos_kernels as bk
from bcos_kernels import _C
from bcos_kernels.functional import bcos_conv2d, bcos_linear, norm
from bcos_kernels.transform import Spec

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CASE_NAMES = (
    "conv3x3", "conv1x1_stride2", "b1", "b1.25", "b2.5", "asymmetric", "dilated", "grouped", "grouped_b1.5",
    "depthwise", "max_out", "max_out_b1.5_groups", "bias_raw_b1.25",
    "bias_unit_max_out", "linear", "linear_b1", "linear_b1.5", "linear_max_out", "linear_late_norm",
    "linear_3d", "reflect", "circular_depthwise", "conv1d_b1.5", "conv3d", "conv3d_b1.5", "conv3d_circular",
)  # fmt: skip


def penalty(layer, *inputs):
    (dx,) = grad(layer(*inputs).sin().sum(), inputs[0], create_graph=True)
    return dx.square().sum()


def test_rows_in_tiles_and_many_threads(kernels_used):
    """A pointwise convolution of many pixels takes its products tile by tile; so does what joins its backward."""
    x = torch.randn(2, 16, 40, 40).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(24, 16, 1, 1, requires_grad=True), torch.randn(24, requires_grad=True)
    inputs = x, weight, bias
    exact = [t.detach().double().requires_grad_() for t in inputs]
    for state in (False, True, {"fixed_weights": False}):
        results = []
        for backend, tensors in (("cpu", inputs), ("reference", exact)):
            loss = penalty(partial(bcos_conv2d, detach=state, backend=backend), *tensors)
            results.append(grad(loss, tensors, allow_unused=True, materialize_grads=True))
        assert all(error(mine, truth) < 1e-5 for mine, truth in zip(*results, strict=True))
    assert kernels_used == [True] * 3


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("name", ["conv3x3", "depthwise", "linear_late_norm"])
def test_patches_whose_outputs_underflow(name, detach, kernels_used):
    """Where y = l|l|/n is 0 and the slope |l|/n is not, l is formed again."""
    case, results = IDS[name], []
    x, weight, _ = case.inputs(torch.float32)
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        inputs = [(1e-24 * x).detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_()]
        y = case(*inputs, b=2, detach=detach, backend=backend)
        upward = torch.ones_like(y, requires_grad=True)
        (dx,) = grad(y, inputs[0], upward, create_graph=True)
        results.append(grad((1e20 * dx).square().sum(), [inputs[1], upward]))
    assert kernels_used[0] and all(error(mine, exact, 0.0) < 1e-4 for mine, exact in zip(*results, strict=True))


def test_a_third_derivative_is_the_references():
    x, weight = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = []
    for backend in ("cpu", "reference"):
        loss = penalty(partial(bcos_linear, backend=backend), x, weight)
        second = grad(loss, (x, weight), create_graph=True)
        results.append([*second, *grad(sum(g.sin().sum() for g in second), (x, weight))])
    assert all(error(mine, yours) < 1e-12 for mine, yours in zip(*results, strict=True))


def test_gradients_of_weights_that_are_differentiated_are_the_references(kernels_used):
    """The kernels know the second derivative of dx alone."""
    x, weight = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = []
    for backend in ("cpu", "reference"):
        first = grad(bcos_linear(x, weight, backend=backend).sin().sum(), (x, weight), create_graph=True)
        results.append(grad(sum(g.square().sum() for g in first), (x, weight)))
    assert all(error(mine, yours) < 1e-12 for mine, yours in zip(*results, strict=True))
    assert not any(kernels_used)


@pytest.mark.parametrize("order", ["fixed", "free", "fixed then free", "free then fixed"])
def test_late_mode_toggled_between_the_orders(order):
    """Whatever the mode is in the backward and in the double backward, results are the reference's."""
    case = IDS["conv3x3"]
    inputs = [t for t in case.inputs(torch.float64) if t is not None]
    first, second = {"fixed": (1, 1), "free": (0, 0), "fixed then free": (1, 0), "free then fixed": (0, 1)}[order]
    results = []
    for backend in ("cpu", "reference"):
        state = {"fixed_weights": False}
        y = case(*inputs, detach=state, backend=backend)
        state["fixed_weights"] = bool(first)
        (dx,) = grad(y.sin().sum(), inputs[0], create_graph=True)
        state["fixed_weights"] = bool(second)
        results.append(grad(dx.square().sum() + y.square().sum(), inputs))
    assert all(error(mine, yours) < 1e-12 for mine, yours in zip(*results, strict=True))


@pytest.mark.parametrize("around", [nullcontext, BaseTorchDispatchMode])
@pytest.mark.parametrize("first, second", [(False, False), (True, True), (None, None), (True, False), (False, True)])
def test_a_bias_on_which_no_gradient_depends_has_none(around, first, second):
    """As with the reference: zeros would count, for optimisers with weight decay and for DistributedDataParallel.

    ``first`` and ``second`` are the late modes of the two backwards; without them the early mode is on.
    """
    x, *parameters = (torch.rand(size, dtype=torch.float64, requires_grad=True) for size in ((2, 4, 3, 3), 4, 4))
    results = []
    for backend in ("cpu", "reference"):
        state = {"fixed_weights": False}
        with around():
            y = norm(x, *parameters, detach=True if first is None else state, backend=backend)
            state["fixed_weights"] = first
            (dx,) = grad(y.sum(), x, create_graph=True)
            state["fixed_weights"] = second
            results.append(grad(dx.square().sum(), parameters, allow_unused=True))
    (mine, of_bias), (theirs, expected) = results
    assert error(mine, theirs) < 1e-12 and of_bias is None and expected is None


def test_a_freed_graph_is_torchs_own_error():
    x, weight, _ = IDS["conv3x3"].inputs(torch.float32)
    loss = penalty(partial(bcos_conv2d, padding=1), x, weight)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_batched_gradients_of_a_penalty():
    x, weight, _ = IDS["conv3x3"].inputs(torch.float64)
    state = {"fixed_weights": True}
    (dx,) = grad(bcos_conv2d(x, weight, padding=1, detach=state).sum(), x, create_graph=True)
    directions = torch.randn(3, *dx.shape, dtype=torch.float64)
    batched = grad(dx, (x, weight), directions, is_grads_batched=True, retain_graph=True)
    for i, direction in enumerate(directions):
        for all_of_them, one in zip(batched, grad(dx, (x, weight), direction, retain_graph=True), strict=True):
            assert error(all_of_them[i], one) < 1e-12


def test_the_extension_checks_its_tensors():
    x, weight, y, n = torch.ones(2, 4, 3, 3), torch.ones(5, 4, 1, 1), torch.ones(2, 5, 3, 3), torch.ones(2, 1, 3, 3)
    spec, none = Spec(stride=(1, 1), padding=(0, 0), dilation=(1, 1)).native, torch.ones(0)
    saved = (y, n, none, none)
    for v, options, needs, words in (
        (x[..., :2], spec, [True, True], r"v has shape \[2, 4, 3, 2\], allowed: \[2, 4, 3, 3\]"),
        (x, spec, [True], "needs has 1 values, allowed: 2"),
    ):
        with pytest.raises(ValueError, match=words):
            _C.transform_second(v, y, x, weight, *saved, options, False, False, needs)
    for dn, dl, words in (
        (n, None, "one of dn and dl is None, allowed: both or none"),
        (n[..., :2], y, r"dn has shape \[2, 1, 3, 2\], allowed: \[2, 1, 3, 3\]"),
        (n, y.double(), "dl has dtype Double"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            _C.transform_backward(y, x, weight, None, *saved, dn, dl, None, spec, False, [True] * 4)
    with pytest.raises(ValueError, match="dn and dl are tensors, allowed: None beside 2 gradients an image"):
        rows, alone = torch.cat([y, y]), [True, False, False, False]
        _C.transform_backward(rows, x, weight, None, *saved, n, y, None, spec, True, alone)


class Guided(torch.nn.Module):
    """Two published layers with a norm between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = bcos.modules.BcosConv2d(6, 8, 3, padding=1), bcos.modules.BcosConv2d(8, 5, 3)
        self.norm = bcos.modules.norms.BatchNormUncentered2d(8)
        self.head = bcos.modules.BcosLinear(5, 4)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x))).mean((2, 3)))


def guided_steps(model, steps: int):
    """Training with a loss on the explanation, as model guidance has it (Rao et al., ICCV 2023)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        x = torch.rand(4, 6, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
        labels = torch.randint(4, (4,), generator=generator)
        logits = model(x)
        with bcos.explanation_mode(model):
            explained = model(x)
            (dx,) = grad(explained.gather(1, labels[:, None]).sum(), x, create_graph=True)
        contributions = (x * dx).sum(1)
        loss = torch.nn.functional.cross_entropy(logits, labels) + contributions[:, 2:6, 2:6].abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64), [p.detach().clone() for p in model.parameters()]


def test_fifty_steps_of_guided_training_coincide(kernels_used):
    torch.manual_seed(0)
    reference = Guided().double()
    ours = bk.accelerate(copy.deepcopy(reference))
    (losses, weights), (their_losses, their_weights) = (guided_steps(model, 50) for model in (ours, reference))
    assert error(losses, their_losses) < 1e-9 and losses[-1] < losses[0]
    assert all(error(mine, yours) < 1e-7 for mine, yours in zip(weights, their_weights, strict=True))
    assert len(kernels_used) == 4 * 50 and all(kernels_used)


class Late(torch.nn.Module):
    """Two layers of which the backward reads the explanation mode, with a norm between them."""

    def __init__(self):
        super().__init__()
        self.state = {"fixed_weights": False}
        self.first, self.second = (torch.nn.Parameter(torch.randn(*s)) for s in ((8, 6, 3, 3), (4, 8, 3, 3)))
        self.gamma = torch.nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x):
        y = bcos_conv2d(x, self.first, padding=1, detach=self.state)
        y = norm(y, self.gamma, detach=self.state)
        return bcos_conv2d(y, self.second, detach=self.state).mean((2, 3))

    def loss(self, x, forward):
        """With the mode on for the gradient alone, as its authors have it (Rao et al., ICCV 2023)."""
        x = x.detach().requires_grad_()
        logits = forward(x)
        self.state["fixed_weights"] = True
        (dx,) = grad(logits[:, 0].sum(), x, create_graph=True)
        self.state["fixed_weights"] = False
        return logits.square().sum() + (x * dx).sum(1).abs().mean()

    def gradients(self, x, forward=None):
        return grad(self.loss(x, self if forward is None else forward), [*self.parameters()])


@pytest.fixture
def late():
    torch.manual_seed(0)
    return Late(), torch.rand(4, 6, 8, 8)


def test_checkpoints(late):
    model, x = late
    forward = partial(checkpoint, model, use_reentrant=False)
    for mine, plain in zip(model.gradients(x, forward), model.gradients(x), strict=True):
        assert torch.equal(mine, plain)


def test_gradients_of_several_steps_add_up(late):
    model, x = late
    expected = [2 * g for g in model.gradients(x)]
    for _ in range(2):
        model.loss(x, model).backward()
    assert all(error(p.grad, e) < 1e-6 for p, e in zip(model.parameters(), expected, strict=True))


def test_distributed_training(late, one_process):
    """With ``create_graph=True`` inside of a wrapped model: gradients are those of the model itself."""
    model, x = late
    expected = model.gradients(x)
    wrapped = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    wrapped.module.loss(x, wrapped).backward()
    assert all(error(p.grad, e) < 1e-6 for p, e in zip(wrapped.parameters(), expected, strict=True))


def test_autocast(late):
    """Gradients of the weights in half precision are no further from float64 than the reference formula's."""
    model, first = late
    budget, wide = Budget(), copy.deepcopy(model).double()
    for x in (first, *torch.rand(20, *first.shape)):
        exact = wide.gradients(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            ours = model.gradients(x)
            with torch.autograd.graph.save_on_cpu():  # hooks on saved tensors see the same
                assert all(torch.equal(a, b) for a, b in zip(model.gradients(x), ours, strict=True))
            theirs = model.gradients(x, by_formula(model))
        for name, *results in zip(("first", "second", "gamma"), ours, theirs, exact, strict=True):
            budget.add(name, *results, torch.bfloat16)
    budget.check()


def by_formula(model):
    """The forward of :class:`Late` by the backend in plain PyTorch."""

    def forward(x):
        options = {"detach": model.state, "backend": "reference"}
        y = norm(bcos_conv2d(x, model.first, padding=1, **options), model.gamma, **options)
        return bcos_conv2d(y, model.second, **options).mean((2, 3))

    return forward


def test_a_compiled_first_order_around_it(late):
    """What surrounds the layers may be compiled; they stay outside of the graph in the late mode, and are right."""
    model, x = late
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for mine, plain in zip(model.gradients(x, compiled), model.gradients(x), strict=True):
        assert error(mine, plain) < 1e-6


def test_memory_beyond_that_of_a_plain_double_backward():
    """The graph of an explanation keeps the gradient at y, as a plain layer's does, and nothing of y's size twice."""
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    weight = torch.randn(16, 8, 3, 3, requires_grad=True)
    kept = {}

    def keep(t):
        if t.numel() > weight.numel():
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def saved(layer):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = layer(x, weight, padding=1)
            first = grad(y.square().sum(), x, create_graph=True)
        assert first[0].requires_grad
        return sum(kept.values())

    norms = 4 * x.numel() // 8
    assert saved(bcos_conv2d) <= saved(torch.nn.functional.conv2d) + norms
