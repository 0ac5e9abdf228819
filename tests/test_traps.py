"""The parity traps of B-cos code, one named test each; what only a module can show stands in test_accelerate.py."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cases import BACKENDS, IDS, bcos, error, naive
from torch.autograd import grad

import bcos_kernels as bk

conv2d, linear = bk.functional.bcos_conv2d, bk.functional.bcos_linear


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_trap_1_norm_pads_with_zeros_in_every_padding_mode(mode):
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    weight = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    module = bcos.modules.BcosConv2d(1, 1, 3, padding=1, padding_mode=mode, dtype=torch.float64)
    with torch.no_grad():
        module.linear.weight.copy_(weight)
    y = conv2d(x, weight, padding=1, padding_mode=mode)
    assert error(y, module(x)) < 1e-14
    corner_l, corner_norm = 3.0, 2.0
    assert y[0, 0, 0, 0].item() == pytest.approx(corner_l**2 / corner_norm, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_trap_2_squares_are_summed_in_fp32(dtype):
    x = torch.full((1, 64, 3, 3), 40.0, dtype=dtype)
    weight = torch.ones(2, 64, 1, 1, dtype=dtype)
    y = conv2d(x, weight)
    assert torch.isfinite(y).all()
    assert y.double().allclose(torch.tensor(320.0).double(), rtol=2e-2)
    rows = torch.full((2, 64), 40.0, dtype=dtype)
    assert torch.isfinite(linear(rows, torch.ones(3, 64, dtype=dtype))).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_trap_3_what_conv2d_accepts_and_the_reference_refuses(backend):
    """Tuple dilation, dilation with max_out, wide and 'same' padding, unbatched images."""
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 9, 10, generator=gen, dtype=torch.float64)
    weight = torch.randn(6, 4, 3, 2, generator=gen, dtype=torch.float64)
    for options in (
        {"dilation": (2, 1)},
        {"dilation": 2, "max_out": 3},
        {"padding": (5, 4)},
        {"padding": "valid"},
        {"padding": 1, "stride": (3, 2)},
    ):
        plain = {k: v for k, v in options.items() if k != "max_out"}
        padding = 0 if plain.pop("padding", 0) == "valid" else options.get("padding", 0)
        expected_l = F.conv2d(
            x, weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1), **{**plain, "padding": padding}
        )
        expected_n = (F.conv2d(x**2, torch.ones_like(weight[:1]), **{**plain, "padding": padding}) + 1e-6).sqrt()
        if "max_out" in options:
            expected_l = expected_l.unflatten(1, (-1, 3)).amax(2)
        y = conv2d(x, weight, backend=backend, **options)
        assert error(y, expected_l.abs() * expected_l / expected_n) < 1e-13
        assert error(conv2d(x[0], weight, backend=backend, **options), y[0]) < 1e-13
    same = conv2d(x, weight, padding="same", dilation=3, backend=backend)
    assert same.shape == (2, 6, 9, 10)
    plain_l = F.conv2d(x, weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1), padding="same", dilation=3)
    plain_n = (F.conv2d(x**2, torch.ones_like(weight[:1]), padding="same", dilation=3) + 1e-6).sqrt()
    assert error(same, plain_l.abs() * plain_l / plain_n) < 1e-13


@pytest.mark.parametrize(
    "backend, dtype",
    [("reference", torch.float16), *product(BACKENDS, (torch.float64, torch.float32, torch.bfloat16))],
)
@pytest.mark.parametrize("b", [1, 1.25, 1.5, 2, 2.5, "tensor"])
def test_trap_4_zero_rows_and_zero_filters_never_give_nan(backend, dtype, b):
    b = torch.tensor(1.5, dtype=dtype, requires_grad=True) if b == "tensor" else b
    for layer, x_shape, w_shape, options in (
        (conv2d, (2, 3, 5, 5), (4, 3, 3, 3), {"padding": 1}),
        (conv2d, (2, 3, 5, 5), (4, 3, 1, 1), {}),
        (conv2d, (2, 4, 5, 5), (4, 1, 3, 3), {"groups": 4}),
        (conv2d, (2, 3, 5, 5), (4, 3, 3, 3), {"norm_eps": (0.0, 1e-12)}),
        (linear, (4, 8), (6, 8), {}),
        (linear, (4, 8), (6, 8), {"cos_eps": 0.0, "norm_eps": (1e-6, 0.0)}),
        (linear, (4, 8), (6, 8), {"max_out": 2}),
        (linear, (4, 8), (6, 8), {"weight_in_norm": True}),
    ):
        for detach in (False, True, {"fixed_weights": True}):
            x, weight = torch.randn(x_shape).to(dtype), torch.randn(w_shape).to(dtype)
            x[0], weight[0] = 0, 0
            x.requires_grad_(), weight.requires_grad_()
            y = layer(x, weight, b=b, detach=detach, backend=backend, **options)
            first = grad(y.sum(), (x, weight), create_graph=True)
            fused = grad(y.sum(), (x, weight), retain_graph=True)
            second = grad(sum(g.float().square().sum() for g in first), (x, weight), allow_unused=True)
            for t in (y, *first, *fused, *second):
                assert t is None or torch.isfinite(t).all()
            if layer is linear:
                assert not y[0].any()


@pytest.mark.parametrize("b", [1.25, 2, 2.5])
def test_a_zero_filter_beside_a_bias_and_the_norm_of_the_weight(b):
    """Its output is 0 as without a bias, and no derivative is NaN."""
    x, weight, bias = torch.randn(2, 3, 4, 4), torch.randn(4, 3, 3, 3), torch.randn(4)
    x[0], weight[0] = 0, 0
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    y = conv2d(*inputs, b=b, padding=1, weight_in_norm=True)
    first = grad(y.sum(), inputs, create_graph=True)
    second = grad(sum(g.square().sum() for g in first), inputs)
    assert not y[:, 0].any() and all(t.isfinite().all() for t in (y, *first, *second))


def test_weight_in_norm_means_nothing_without_a_norm():
    """At b = 1 the output is l, with the bias of a filter of zeros as well."""
    x, weight, bias = torch.randn(2, 3, 4, 4), torch.randn(4, 3, 1, 1), torch.randn(4)
    weight[0] = 0
    expected = torch.nn.functional.conv2d(x, weight, bias)
    y = conv2d(x, weight, bias, b=1, normalize_weights=False, weight_in_norm=True)
    assert error(y, expected) < 1e-6


def test_trap_6_tensor_exponent_is_never_read_by_the_host():
    """A fake tensor has no value: an op that read b would fail on it."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        b = torch.empty((), requires_grad=True)
        for layer, shapes in ((conv2d, ((1, 3, 4, 4), (2, 3, 1, 1))), (linear, ((3, 4), (2, 4)))):
            for backend in BACKENDS:
                x, weight = (torch.empty(s, requires_grad=True) for s in shapes)
                y = layer(x, weight, b=b, backend=backend)
                assert grad(y.sum(), b)[0].shape == ()


def test_trap_7_half_precision_does_not_overflow_at_l_times_l():
    x = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)
    assert conv2d(x, torch.ones(1, 1, 1, 1, dtype=torch.float16)).item() == 300.0


def in_both_ways(build, x):
    """``(y, parameter gradients, explanation)`` of a model as it is and accelerated, from equal weights."""
    results = []
    for accelerate in (lambda model: model, bk.accelerate):
        torch.manual_seed(0)
        model = accelerate(build())
        sample = x.clone().requires_grad_()
        gradients = grad(model(sample).square().sum(), list(model.parameters()), allow_unused=True)
        with bcos.explanation_mode(model):
            y = model(sample)
            (explanation,) = grad(y.sum(), sample)
        results.append((y, explanation, *(g for g in gradients if g is not None)))
    return results


@pytest.mark.parametrize("training", [True, False])
def test_trap_8_detachable_norms_detach_their_variance(training):
    """BatchNormUncentered2d and its kin, accelerated: their class, buffers and detached variance stay."""
    norms = bcos.modules.norms

    def build():
        return torch.nn.Sequential(
            bcos.modules.BcosConv2d(6, 8, 3, padding=1),
            norms.BatchNormUncentered2d(8),
            bcos.modules.BcosConv2d(8, 8, 3, b=1.5),
            norms.DetachablePositionNorm2d(8),
            bcos.modules.BcosConv2d(8, 4, 1),
        ).double().train(training)  # fmt: skip

    x = torch.rand(3, 6, 8, 8, dtype=torch.float64)
    for mine, yours in zip(*in_both_ways(build, x), strict=True):
        assert error(mine, yours) < 1e-12
    model = bk.accelerate(build())
    assert isinstance(model[1], norms.BatchNormUncentered2d) and isinstance(model[3], norms.DetachablePositionNorm2d)
    assert [row.backend for row in bk.report(model).norms] == ["cpu", "cpu"]
    assert list(model.state_dict()) == list(build().state_dict())


def test_trap_9_attention_flows_through_v_alone():
    """q and k are detached in explanation mode, and to_qkv is a plain nn.Linear that nobody touches."""

    def build():
        return bcos.pretrained.simple_vit_ti_patch16_224(pretrained=False).double()

    x = torch.rand(1, 6, 32, 32, dtype=torch.float64)
    for mine, yours in zip(*in_both_ways(build, x), strict=True):
        assert error(mine, yours) < 1e-10
    plain = [m for n, m in bk.accelerate(build()).named_modules() if n.endswith("to_qkv")]
    assert plain and all(type(m) is torch.nn.Linear for m in plain)


def test_trap_10_attributes_and_keys_that_callers_read():
    for make in (bcos.modules.BcosConv2d, bk.BcosConv2d):
        layer = bk.accelerate(make(4, 6, 3, padding=1, b=2, max_out=2, bias=True, scale_fact=200))
        assert list(layer.state_dict()) == ["linear.weight"]
        assert isinstance(layer.linear, torch.nn.Conv2d)
        assert (layer.b, layer.max_out, layer.detach) == (2, 2, False)
        x = torch.rand(2, 4, 5, 5)
        assert torch.allclose(
            layer.calc_patch_norms(x), (F.conv2d(x**2, torch.ones(1, 4, 3, 3), padding=1) + 1e-6).sqrt()
        )
        layer.forward = lambda x: x
        assert layer(x) is x
    assert isinstance(bk.BcosLinear(3, 4).linear, torch.nn.Linear)


def test_trap_11_explain_returns_the_inputs_own_gradient():
    """A second explanation overwrites the first, accelerated or not: keep a clone."""
    model = bcos.modules.BcosSequential(
        bcos.modules.BcosConv2d(6, 5, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ).eval()
    x = torch.rand(1, 6, 32, 32, requires_grad=True)
    theirs = [model.explain(x, idx)["dynamic_linear_weights"].clone() for idx in (0, 1)]
    bk.accelerate(model)
    first = model.explain(x, 0)["dynamic_linear_weights"]
    assert first is x.grad and error(first, theirs[0]) < 1e-6
    model.explain(x, 1)
    assert error(first, theirs[1]) < 1e-6


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_trap_13_empty_batches(layer):
    x = torch.randn(0, 6, 5, 5) if layer == "conv" else torch.randn(0, 6)
    weight = torch.randn(4, 6, 3, 3) if layer == "conv" else torch.randn(4, 6)
    for b in (1, 1.5, 2):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = (conv2d if layer == "conv" else linear)(x, weight, b=b)
        assert y.shape == ((0, 4, 3, 3) if layer == "conv" else (0, 4))
        dx, dw = grad(y.sum(), (x, weight))
        assert dx.shape == x.shape and not dw.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["conv3x3", "max_out", "max_out_b1", "b1.5", "linear", "linear_max_out"])
def test_non_finite_values_spread_as_in_the_reference(name, value, backend):
    """A maximum that drops NaN is the classic: the masks must be the reference's."""
    case = IDS[name]
    for where in ("x", "weight"):
        x, weight, _ = (None if t is None else t.detach() for t in case.inputs(torch.float32))
        (x if where == "x" else weight).flatten()[7] = value
        options = {**case.options, "backend": backend}
        y = case(x, weight, **options)
        theirs = naive(x, weight, **case.options)
        assert torch.equal(torch.isnan(y), torch.isnan(theirs))
        assert torch.equal(torch.isinf(y), torch.isinf(theirs))
