"""Rows of the dynamic linear map: several gradients of the same call, in one call of a kernel that takes them."""

from dataclasses import replace

import cpu_oracle
import pytest
import torch
from cases import CASES, IDS, Case
from recorded_calls import by_python
from rows_checks import NORMS, ROWS, assert_same, check_norm, gradients_of, one_by_one, rows, taken  # noqa: F401
from torch.autograd import grad

import bcos_kernels as bk
from bcos_kernels.core import autograd

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


def of_repeated_images(node, gradients):
    """dx of a backward of T·N images: the same products as those of rows at once, but what is saved is repeated."""
    inputs, saved, *_ = autograd._saved(node)
    repeated = [None if t is None else torch.cat([t] * ROWS) for t in (inputs.x.detach(), *saved)]  # keeps the strides
    inputs, saved = inputs._replace(x=repeated[0]), type(saved)(*repeated[1:])
    call = node.op.call(inputs, node.call.spec)
    needs = True, False, False, False
    with torch.no_grad():
        return node.op.backward(gradients.flatten(0, 1), inputs, saved, call, True, needs, node.backend)[0]


def frozen(case, dtype, channels_last):
    x, weight, bias = case.inputs(dtype, channels_last=channels_last)
    return x, Case(case.name, case.x, case.weight, {**case.options, "detach": True}, case.bias)(x, weight, bias)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_transform(dtype, channels_last, taken):  # noqa: F811
    for case in CASES:
        x, y = frozen(case, DTYPES[dtype], channels_last)
        gradients = gradients_of(y)
        single = one_by_one(y, x, gradients)
        del taken[:]
        many = rows(y, x, gradients)
        assert taken == ["transform"], case.name
        padded = "padding_mode" in case.options  # there torch's own backward of the padding comes last
        with pytest.MonkeyPatch.context() as patch:
            by_python(patch)
            recorded = frozen(case, DTYPES[dtype], channels_last)[1]  # it owns what was saved of it (torch 2.11)
        node = recorded.grad_fn
        if dtype == "fp32" and hasattr(node, "op") and not padded:
            # oneDNN sums in another order where there are more images
            assert torch.equal(many, of_repeated_images(node, gradients).view(many.shape)), case.name
        else:
            assert_same(many, single)
        if y.dim() == 4 and min(x.shape[2:]) > 1 and x.shape[1] > 1 and not padded:
            assert many[0].is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("name", ["conv3x3", "grouped", "depthwise", "max_out", "linear", "linear_b1.5", "conv1x1"])
def test_rows_with_several_threads(name, several_threads):
    case = IDS[name]
    case = Case(name, (8, *case.x[1:]), case.weight, case.options)
    for channels_last in (False, True):
        x, y = frozen(case, torch.float64, channels_last)
        assert_same(rows(y, x, gradients_of(y)), one_by_one(y, x, gradients_of(y)))


@pytest.mark.parametrize("name", ["conv3x3", "conv1x1", "depthwise", "linear"])
def test_rows_of_zero_and_tiny_patches(name):
    """Where the norm is that of a zero patch, y cannot stand for l, which the backward computes again."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float32)
    with torch.no_grad():
        x[0] *= 1e-25
        x[1] = 0
    y = case(x, weight, detach=True)
    many, single = rows(y, x, gradients_of(y)), one_by_one(y, x, gradients_of(y))
    assert torch.isfinite(many).all() and torch.equal(many, single)


@pytest.mark.parametrize("name", ["conv3x3", "linear"])
def test_what_is_not_taken(name, taken):  # noqa: F811
    """Gradients of weights, scales that are not frozen, graphs and other backends take one call for each row."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float64)

    def check(y, wanted, **options):
        gradients = gradients_of(y)
        many = torch.func.vmap(lambda g: grad(y, wanted, g, retain_graph=True, **options))(gradients)
        for i, g in enumerate(gradients):
            for mine, theirs in zip(many, grad(y, wanted, g, retain_graph=True), strict=True):
                assert_same(mine[i].detach(), theirs)

    check(case(x, weight), (x,))
    check(case(x, weight, detach=True), (x, weight))
    check(case(x, weight, detach=True), (x,), create_graph=True)
    check(case(x, weight, detach=True, backend="reference"), (x,))
    assert taken == []
    state = {"fixed_weights": False}
    y = case(x, weight, detach=state)
    check(y, (x,))
    state["fixed_weights"] = True
    check(y, (x,))
    assert taken == ["transform"]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_of_a_norm(name, dtype, layout, trains, taken):  # noqa: F811
    check_norm(name, DTYPES[dtype], "cpu", trains, layout, taken)


def test_a_mean_over_the_batch_joins_the_rows(taken):  # noqa: F811
    """It is differentiated, so that each row takes a call."""
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    y = bk.functional.norm(x, centered=True, detach=True)[0]
    assert_same(rows(y, x, gradients_of(y)), one_by_one(y, x, gradients_of(y)))
    assert taken == []


def test_an_empty_batch_has_empty_rows():
    x = torch.randn(0, 6, 5, 4, requires_grad=True)
    y = bk.functional.bcos_conv2d(x, torch.randn(4, 6, 3, 3), detach=True)
    assert rows(y, x, torch.randn(ROWS, *y.shape)).shape == (ROWS, 0, 6, 5, 4)


def test_rows_within_another_vmap():
    """The outer vmap must see the operators, too."""
    x, y = frozen(IDS["conv3x3"], torch.float64, False)
    gradients = torch.stack([gradients_of(y), 2 * gradients_of(y)])
    nested = torch.func.vmap(lambda g: rows(y, x, g))(gradients)
    for many, g in zip(nested, gradients, strict=True):
        assert_same(many, one_by_one(y, x, g))


@pytest.mark.parametrize("name", ["1x1 tiles", "groups of 4", "groups of 8 dilated"])
def test_rows_in_tiles(name, several_threads):
    """Tiles that cross from one row's images into the next one's."""
    case = replace(cpu_oracle.GEOMETRIES[name], format=torch.channels_last)
    inputs = case.inputs()
    outputs = cpu_oracle.forward(case, **inputs)
    grads = torch.randn(3 * case.batch, *outputs[0].shape[1:]).contiguous(memory_format=torch.channels_last)

    def dx(grad):
        arguments = grad, inputs["x"], inputs["weight"], None, outputs
        return cpu_oracle.backward(case, *arguments, frozen=True, needs=(True, False, False, False))[0]

    assert torch.equal(dx(grads), torch.cat([dx(grad) for grad in grads.chunk(3)]))


@pytest.mark.parametrize("index", range(4))
def test_rows_have_the_gradient_of_the_input_alone(index):
    """The extension takes no rows where another gradient is needed, too: their sum would be a wrong one."""
    native = bk.transform.cpu._C
    spec = bk.transform.spec.Spec((1, 1), (0, 0), (1, 1), b=None).native
    x, weight, b = torch.rand(2, 3, 4, 4), torch.rand(5, 3, 1, 1), torch.tensor(1.5)
    y, *kept = native.transform_forward(x, weight, None, b, spec)

    def backward(needs):
        grad = torch.cat([y, y])
        return native.transform_backward(grad, x, weight, b, None, *kept, None, None, None, spec, True, needs)

    needs = [i in (0, index) for i in range(4)]
    if index == 0:
        assert backward(needs)[0].shape == (4, 3, 4, 4)
    else:
        with pytest.raises(ValueError, match=r"grad has shape \[4, 5, 4, 4\], allowed: \[2, 5, 4, 4\]"):
            backward(needs)
