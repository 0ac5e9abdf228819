"""Derivatives of every order and mode: gradcheck, gradgradcheck, early and late explanation mode, vmap, torch.func."""

import pytest
import torch
from cases import BACKENDS, IDS, Budget, Case, bcos, enough, error, naive, thinned, upstream
from torch.autograd import grad, gradcheck, gradgradcheck

import bcos_kernels as bk

SMALL = [
    Case("conv", (2, 4, 5, 4), (3, 4, 3, 3), {"padding": 1, "stride": 2}),
    Case("grouped", (1, 4, 4, 4), (4, 2, 3, 3), {"padding": 1, "groups": 2}),
    Case("depthwise_dilated", (1, 3, 5, 5), (3, 1, 3, 3), {"padding": 2, "groups": 3, "dilation": 2}),
    Case("max_out_bias", (1, 3, 4, 4), (4, 3, 3, 3), {"max_out": 2}, True),
    Case("raw_bias", (1, 3, 4, 4), (4, 3, 2, 2), {"normalize_weights": False}, True),
    Case("weight_in_norm", (1, 3, 4, 4), (4, 3, 2, 2), {"normalize_weights": False, "weight_in_norm": True}),
    Case("reflect", (1, 3, 4, 4), (2, 3, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
    Case("conv1d", (2, 3, 5), (4, 3, 3), {"padding": 1}),
    Case("conv3d_circular", (1, 2, 3, 3, 2), (2, 2, 2, 2, 1), {"padding": 1, "padding_mode": "circular", "stride": 2}),
    Case("linear", (3, 5), (4, 5)),
    Case("linear_max_out", (3, 5), (4, 5), {"max_out": 2}),
]


@pytest.mark.parametrize("b", thinned([1, 1.25, 1.5, 2, 2.5, "tensor"], lambda b: b in (1.5, 2)))
@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_gradcheck_and_gradgradcheck(case, b):
    inputs = [t for t in case.inputs(torch.float64) if t is not None]
    options = {} if b == "tensor" else {"b": b}
    if b == "tensor":
        inputs.append(torch.tensor(1.7, dtype=torch.float64, requires_grad=True))
    for backend in BACKENDS:

        def layer(*args, backend=backend):
            return (
                case(*args[:-1], b=args[-1], backend=backend)
                if not options
                else case(*args, backend=backend, **options)
            )

        assert gradcheck(layer, inputs)
        assert gradgradcheck(layer, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("b", [1.0, 1.5, 2.0, 2.5])
@pytest.mark.parametrize("name", ["conv3x3", "max_out", "depthwise", "linear"])
def test_gradient_of_a_tensor_exponent(name, b, backend):
    """∂y/∂b = y·ln c, also at exactly 2 where the reference's shortcut gives none (trap 6), in explanation mode too."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float64)
    exponent = torch.tensor(b, dtype=torch.float64, requires_grad=True)
    for detach in (False, True):
        y = case(x, weight, b=exponent, detach=detach, backend=backend)
        step = 1e-6
        # exact_two=False is the smooth function on both sides of 2
        above, below = (case.naive(x, weight, b=b + s, cos_eps=0.0 if b == 2 else 1e-6) for s in (step, -step))
        if b != 1:
            assert error(y, case.naive(x, weight, b=b)) < 1e-13
        (db,) = grad(y.sum(), exponent)
        assert error(db, ((above - below) / (2 * step)).sum()) < 1e-5


@pytest.mark.parametrize("b_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["conv3x3", "max_out", "conv1d_b1.5", "linear_3d"])
def test_an_exponent_with_a_dimension_takes_part_in_type_promotion(name, dtype, b_dtype):
    """The dtypes of y and of all gradients are the reference's, and errors at most its own."""
    case, budget = IDS[name], Budget()
    for seed in range(enough(5, case, dtype)):
        inputs = case.inputs(dtype, seed)[:2]
        exponent = torch.full((1,), 1.5, dtype=b_dtype, requires_grad=True)
        found, upward = [], torch.randn(case(*inputs, b=1.5).shape, dtype=torch.float64)
        for layer, to in ((case, None), (case.naive, None), (case.naive, torch.float64)):
            named = [t.detach().to(to or t.dtype).requires_grad_() for t in (*inputs, exponent)]
            y = layer(*named[:2], b=named[2])
            found.append((y, *grad(y, named, upward.to(y.dtype))))
        assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]
        assert found[0][0].dtype == torch.promote_types(dtype, b_dtype)
        for what, *results in zip(("y", "dx", "dw", "db"), *found, strict=True):
            budget.add(what, *results, dtype)
    budget.check()


def test_an_exponent_without_a_dimension_takes_no_part_in_type_promotion():
    x, weight, _ = IDS["linear"].inputs(torch.bfloat16)
    assert bk.functional.bcos_linear(x, weight, b=torch.tensor(1.5)).dtype == torch.bfloat16
    assert bk.functional.bcos_linear(x, weight, b=torch.ones(1), out_dtype=x.dtype).dtype == torch.bfloat16


def test_dtypes_of_a_layer_whose_linear_part_has_a_hook_and_of_autocast():
    layer = bk.BcosLinear(6, 4, b=torch.full((1,), 1.5), dtype=torch.bfloat16)
    x = torch.randn(3, 6).bfloat16()
    assert layer(x).dtype == torch.float32
    layer.linear.register_forward_hook(lambda *args: None)
    assert layer(x).dtype == torch.float32
    weight, b = torch.randn(4, 6), torch.full((1,), 1.5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert bk.functional.bcos_linear(x.float(), weight, b=b).dtype == naive(x, weight, b=b).dtype == torch.float64


@pytest.mark.parametrize("b_dtype", [torch.float64, torch.float32])
def test_a_compiled_layer_has_the_dtype_that_its_exponent_gives(b_dtype):
    torch.compiler.reset()
    x, weight, _ = IDS["conv3x3"].inputs(torch.bfloat16)
    b = torch.full((1,), 1.5, dtype=b_dtype, requires_grad=True)
    layer = torch.compile(bk.functional.bcos_conv2d, backend="aot_eager", fullgraph=True)
    found, expected = layer(x, weight, b=b), bk.functional.bcos_conv2d(x, weight, b=b)
    assert found.dtype == expected.dtype == b_dtype and torch.equal(found, expected)
    for a, e in zip(*(grad(y.sum(), (x, weight, b)) for y in (found, expected)), strict=True):
        assert a.dtype == e.dtype and torch.equal(a, e)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("b", [1, 1.5, 2, 2.5])
@pytest.mark.parametrize(
    "name", ["conv3x3", "conv1x1_stride2", "grouped", "depthwise", "max_out", "linear", "linear_max_out"]
)
def test_second_order_of_an_explanation_loss(name, b, backend):
    """Early mode: gradients of a loss on the explanation equal those of ``bcos``."""
    case = IDS[name]
    case = Case(case.name, case.x, case.weight, {**case.options, "b": b, "detach": True})
    x, weight, _ = case.inputs(torch.float64)
    module = upstream(case, torch.float64)
    with torch.no_grad():
        module.linear.weight.copy_(weight)

    def loss(y, x):
        (explanation,) = grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape).double()).sum(), x, create_graph=True)
        return (explanation * x).abs().sum() + (explanation**2).sum()

    ours = grad(loss(case(x, weight, backend=backend), x), (x, weight))
    theirs = grad(loss(module(x), x), (x, module.linear.weight))
    for mine, yours in zip(ours, theirs, strict=True):
        assert error(mine, yours) < 1e-12


def late_formula(case, x, weight, b, state):
    """Late mode written independently: the multiplication decides in its backward, as model guidance does."""

    class Multiply(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s, linear):
            ctx.save_for_backward(s, linear)
            return s * linear

        @staticmethod
        def backward(ctx, g):
            s, linear = ctx.saved_tensors
            return None if state["fixed_weights"] else g * linear, g * s

    linear = case.naive(x, weight, b=1)
    y = case.naive(x, weight, b=b)
    return y if b == 1 else Multiply.apply(y / linear, linear)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("b", [1, 1.5, 2, 2.5])
@pytest.mark.parametrize("name", ["conv3x3", "grouped", "max_out", "linear"])
def test_late_mode(name, b, backend):
    """Forward outside the mode, entered for the explanation alone, left before the loss's backward."""
    case = IDS[name]
    results = []
    for layer in ("ours", "theirs"):
        state = {"fixed_weights": False}
        x, weight, _ = case.inputs(torch.float64)
        if layer == "ours":
            y = case(x, weight, b=b, detach=state, backend=backend)
        else:
            y = late_formula(case, x, weight, b, state)
        state["fixed_weights"] = True
        (explanation,) = grad(y.sum(), x, create_graph=True)
        (explanation_alone,) = grad(y.sum(), x, retain_graph=True)
        state["fixed_weights"] = False
        loss = (explanation * x).square().sum() + y.square().sum()
        results.append((y, explanation, explanation_alone, *grad(loss, (x, weight))))
    for mine, yours in zip(*results, strict=True):
        assert error(mine, yours) < 1e-11


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["conv3x3", "max_out", "linear", "b1.5"])
def test_trap_12_batched_gradients_and_functional_transforms(name, backend):
    """is_grads_batched, and torch.func's grad, vjp, vmap, jacrev against plain autograd."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float64)
    y = case(x, weight, backend=backend)
    several = torch.randn(3, *y.shape, dtype=torch.float64)
    batched = grad(y, (x, weight), several, is_grads_batched=True, retain_graph=True)
    for i, g in enumerate(several):
        for stacked, single in zip(batched, grad(y, (x, weight), g, retain_graph=True), strict=True):
            assert error(stacked[i], single) < 1e-13

    def layer(x, weight):
        return case(x, weight, backend=backend)

    def loss(x, weight):
        return layer(x, weight).square().sum()

    plain = grad(loss(x, weight), (x, weight))
    for mine, yours in zip(torch.func.grad(loss, (0, 1))(x.detach(), weight.detach()), plain, strict=True):
        assert error(mine, yours) < 1e-13
    xs = torch.stack([x.detach(), 2 * x.detach(), -x.detach()])
    ws = torch.stack([weight.detach(), weight.detach().flip(0), 3 * weight.detach()])
    for in_dims in ((0, None), (None, 0), (0, 0)):
        args = [t if d == 0 else t[0] for t, d in zip((xs, ws), in_dims, strict=True)]
        expected = [layer(*(t[i] if d == 0 else t for t, d in zip(args, in_dims, strict=True))) for i in range(3)]
        assert error(torch.func.vmap(layer, in_dims)(*args), torch.stack(expected)) < 1e-13
        per_sample = torch.func.vmap(torch.func.grad(loss, (0, 1)), in_dims)(*args)
        one = torch.func.grad(loss, (0, 1))(*(t[1] if d == 0 else t for t, d in zip(args, in_dims, strict=True)))
        for mine, yours in zip(per_sample, one, strict=True):
            assert error(mine[1], yours) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["size2", "linear2"])
def test_forward_mode_and_hessian(name, backend):
    case = IDS[name]
    x, weight, _ = (None if t is None else t.detach() for t in case.inputs(torch.float64))

    def loss(x, weight):
        return case(x, weight, backend=backend).square().sum()

    def naive_loss(x, weight):
        return case.naive(x, weight).square().sum()

    tangents = (torch.ones_like(x), weight.flip(0))
    for mine, yours in zip(
        torch.func.jvp(loss, (x, weight), tangents), torch.func.jvp(naive_loss, (x, weight), tangents), strict=True
    ):
        assert error(mine, yours) < 1e-13
    expected = torch.func.jvp(lambda x: case.naive(x, weight), (x,), tangents[:1])[1]
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        y = case(torch.autograd.forward_ad.make_dual(x, tangents[0]), weight, backend=backend)
        assert error(torch.autograd.forward_ad.unpack_dual(y).tangent, expected) < 1e-13
    assert error(torch.func.hessian(loss, 1)(x, weight), torch.func.hessian(naive_loss, 1)(x, weight)) < 1e-12


def test_per_sample_gradients_of_a_reference_layer():
    """The same transforms on ``bcos`` itself give the same per-sample gradients."""
    x, weight, _ = IDS["conv3x3"].inputs(torch.float64)
    module = bcos.modules.BcosConv2d(6, 5, 3, padding=1, dtype=torch.float64)

    def theirs(weight, sample):
        return torch.func.functional_call(module, {"linear.weight": weight}, (sample[None],)).square().sum()

    def ours(weight, sample):
        return bk.functional.bcos_conv2d(sample[None], weight, padding=1).square().sum()

    for per_sample in (torch.func.vmap(torch.func.grad(f), (None, 0)) for f in (ours,)):
        expected = torch.func.vmap(torch.func.grad(theirs), (None, 0))(weight.detach(), x.detach())
        assert error(per_sample(weight.detach(), x.detach()), expected) < 1e-12
