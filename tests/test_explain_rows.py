"""``bk.explain``: trained directions, integers of NumPy, what a model may return, compiled models, and pictures."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from test_explain import example, made

import bcos_kernels as bk
from bcos_kernels.core import _torch


def test_the_graph_of_directions_is_kept():
    """As of embeddings of texts that are trained by a loss on explanations."""
    model, x = made("bcos"), example("bcos")
    with torch.no_grad():
        classes = model(x).shape[1]
    directions = torch.randn(2, classes, dtype=x.dtype, requires_grad=True)
    found = bk.explain(model, x, directions, create_graph=True)
    assert not found.targets.requires_grad
    (gradient,) = torch.autograd.grad(found.contributions.square().sum(), directions)
    rows = bk.explain(model, x, [range(classes)] * len(x)).contributions
    again = directions.detach().requires_grad_()
    (expected,) = torch.autograd.grad(torch.einsum("tk,nkhw->nthw", again, rows).square().sum(), again)
    assert gradient.allclose(expected, rtol=1e-9)
    assert not bk.explain(model, x, directions).contributions.requires_grad


def test_integers_of_numpy():
    """As labels of files and counts of a configuration have them; torch has no minimum of the large unsigned dtypes."""
    model, x = made("bcos"), example("bcos")
    expected = bk.explain(model, x, [[0, 1], [4, 4], [1, 2]])
    for dtype in (np.int64, np.uint8, np.uint16, np.uint32, np.uint64):
        classes = expected.targets.numpy().astype(dtype)
        found = bk.explain(model, x, classes, chunk=dtype(1))
        assert torch.equal(found.targets, expected.targets)
        assert torch.allclose(found.weights, expected.weights, rtol=1e-11)


@pytest.mark.parametrize("tokens", [False, True])
def test_positions_in_half_precision_are_summed_in_float32(tokens):
    """The largest of sums that are infinite in float16 would be the first one."""
    model, x = made("bcos").float(), example("bcos").float()

    def features(dtype):
        def output(model, x):
            y = 2e4 * model[0](x).to(dtype)
            return y.flatten(2).mT if tokens else y

        return output

    half, single = (bk.explain(model, x, output=features(dtype)) for dtype in (torch.float16, torch.float32))
    assert single.logits.amax() > torch.finfo(torch.float16).max > features(torch.float32)(model, x).amax()
    assert half.logits.dtype == torch.float32 and half.logits.allclose(single.logits, rtol=1e-2, atol=1e2)
    assert torch.equal(half.targets, single.targets)
    assert half.weights.allclose(single.weights, rtol=1e-2)


class Returning(torch.nn.Module):
    def __init__(self, model, make):
        super().__init__()
        self.model, self.make = model, make

    def forward(self, x):
        return self.make(self.model(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda y: {"loss": None, "logits": y},
        lambda y: OrderedDict(logits=y, hidden_states=y.detach()),
        lambda y: namedtuple("Result", "features, logits")(None, y),
    ],
    ids=["dict", "ordered", "attribute"],
)
def test_logits_of_a_model_that_returns_more(make):
    """As the models of Hugging Face's Trainer, which may be any module."""
    model, x = made("bcos"), example("bcos")
    assert torch.equal(bk.explain(Returning(model, make).eval(), x).weights, bk.explain(model, x).weights)


def test_a_compiled_model_is_explained_by_the_model_that_it_compiles():
    """A compiled backward runs once, and has no derivative; its modules have names of their own."""
    model, x = bk.accelerate(made("bcos")), example("bcos")
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    assert torch.equal(bk.explain(compiled, x, "top5").weights, bk.explain(model, x, "top5").weights)
    bk.explain(compiled, x, "top2", chunk=1, create_graph=True).contributions.square().sum().backward()
    last = [name for name, _ in model.named_modules()][-1]
    assert torch.equal(bk.explain(compiled, x, 0, output=last).logits, bk.explain(model, x, 0, output=last).logits)


def test_directions_may_be_lists():
    model, x = made("bcos"), example("bcos")
    directions = [[0.5] * 5, [1.0, -1.0, 0.0, 2.0, 0.25]]
    found, expected = (bk.explain(model, x, given) for given in (directions, torch.tensor(directions, dtype=x.dtype)))
    assert torch.equal(found.contributions, expected.contributions) and found.contributions.any()


def test_the_largest_gradient_is_found_far_from_the_output():
    """What decides how many rows take a backward together."""
    x = torch.ones(2, requires_grad=True)
    y = (x.double() + 1).repeat(50).mul(2).sum().float() + x.sum()
    assert _torch.largest_gradient(y, x) == 100 * 8


def test_weights_of_zero_are_transparent():
    images, weights = torch.rand(2, 6, 9, 8), torch.zeros(2, 6, 9, 8)
    weights[1, :, 4, 4] = 1  # fewer pixels than the percentile leaves out
    for smooth in (0, 3):
        pictures = bk.explanation.result.rgba(images, weights, smooth, alpha_percentile=80)
        assert not pictures.isnan().any() and not pictures[0, ..., 3].any()
        assert pictures[1, 4, 4, 3] == 1 and pictures[1, 0, 0, 3] == 0


def test_a_picture_needs_six_channels():
    with pytest.raises(ValueError, match=r"weights has shape \(3, 4, 4\): colours need six channels"):
        bk.explanation.result.rgba(torch.ones(3, 4, 4), torch.ones(3, 4, 4))
