"""The layers of the package: constructors, attributes, state dicts and values of ``bcos.modules``."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import bcos_kernels as bk
from bcos_kernels.compat import import_reference
from bcos_kernels.modules import NormedConv2d, NormedLinear

bcos = import_reference()
M = bcos.modules

CONV = [
    ((6, 4), {}),
    ((6, 4, 3), {"padding": 1}),
    ((6, 4, 3, 2, 1), {"b": 1.5}),
    ((6, 4, (3, 1)), {"padding": (1, 0), "stride": (1, 2), "b": 1}),
    ((6, 4, 3), {"groups": 2, "max_out": 2, "padding": 1}),
    ((6, 6, 3), {"groups": 6, "b": 2.5}),
    ((6, 4, 3), {"dilation": 2, "padding": 2}),
    ((6, 4, 3), {"padding": 1, "padding_mode": "circular"}),
    ((6, 4, 3, 1, 1, 1, 1, "zeros", None, torch.float32, 1.25, 3), {"bias": True, "scale_fact": 200}),
]
SCALED = [
    ((6, 4, 3), {}),
    ((6, 4, (3, 1)), {"scale_factor": 10, "b": 1}),
    ((6, 4, 3), {"scale": 0.5, "max_out": 2}),
]
LINEAR = [((6, 4), {}), ((6, 4, False, None, None, 1.5, 3), {}), ((6, 4), {"b": 1}), ((6, 4), {"max_out": 2})]
LAYERS = [
    *(("BcosConv2d", *case) for case in CONV),
    *(("BcosConv2dWithScale", *case) for case in SCALED),
    *(("BcosLinear", *case) for case in LINEAR),
]


def pair(name, args, options):
    torch.manual_seed(0)
    theirs = getattr(M, name)(*args, **options)
    torch.manual_seed(0)
    return getattr(bk, name)(*args, **options), theirs


def example(layer, dtype=torch.float64):
    return torch.randn((4, 6) if hasattr(layer, "in_features") else (2, 6, 7, 5), dtype=dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, args, options", LAYERS)
def test_is_the_layer_of_bcos(name, args, options):
    ours, theirs = pair(name, args, options)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["linear.weight"]
    assert torch.equal(ours.linear.weight, theirs.linear.weight)  # the same draws from the same seed
    for key, value in vars(theirs).items():
        if not key.startswith("_") and key != "calc_patch_norms":
            assert getattr(ours, key) == value, key
    assert ours.extra_repr() == theirs.extra_repr()
    assert isinstance(ours.linear, nn.Linear if name == "BcosLinear" else nn.Conv2d)
    ours, theirs = ours.double(), theirs.double()
    theirs.load_state_dict(ours.state_dict())
    x = example(ours)
    for explain in (False, True):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        results = []
        for layer, value in zip((ours, theirs), inputs, strict=True):
            layer.set_explanation_mode(explain)
            assert layer.is_in_explanation_mode is layer.detach is explain
            y = layer(value)
            results.append([y, *torch.autograd.grad(y.sin().sum(), [value, layer.linear.weight])])
        for a, b in zip(*results, strict=True):
            assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("args, options", [case for case in CONV if case[1].get("padding_mode") is None])
def test_patch_norms_of_bcos(args, options):
    ours, theirs = (layer.double() for layer in pair("BcosConv2d", args, options))
    x = example(ours)
    norms, truth = ours.calc_patch_norms(x), theirs.calc_patch_norms(x)
    if options.get("dilation"):  # the reference repeats the norm for every filter there
        norms = norms.expand_as(truth)
    assert norms.shape == truth.shape
    assert torch.allclose(norms, truth, rtol=1e-12)


@pytest.mark.parametrize(
    "options, alike",
    [
        ({"dilation": (2, 1), "padding": (2, 1)}, {}),
        ({"dilation": 2, "max_out": 2}, {}),
        ({"padding": "same"}, {"padding": 1}),
        ({"padding": "valid", "stride": 2}, {"padding": 0, "stride": 2}),
        ({"padding": 3}, {}),
    ],
)
def test_geometry_that_the_reference_refuses(options, alike):
    """Tuple dilation, dilation with MaxOut, "same" and wide padding: |l|/n · l with n from a convolution."""
    layer = bk.BcosConv2d(6, 4, 3, **options).double()
    geometry = {"stride": 1, "padding": 0, "dilation": 1, **options, **alike}
    max_out = geometry.pop("max_out", 1)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    weight = layer.linear.weight
    unit = weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    l = F.conv2d(x, unit, None, **geometry).unflatten(1, (4, max_out)).amax(2)  # noqa: E741
    norm = (F.conv2d(x**2, torch.ones(1, 6, 3, 3).double(), None, **geometry) + 1e-6).sqrt()
    assert torch.allclose(layer(x), l.abs() / norm * l, rtol=1e-12)
    assert torch.allclose(layer.calc_patch_norms(x), norm, rtol=1e-12)
    assert torch.equal(layer(x[0]), layer(x[:1])[0])
    assert torch.equal(layer.calc_patch_norms(x[0]), layer.calc_patch_norms(x[:1])[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name, args, options", LAYERS)
def test_hooks_of_the_linear_part_run(name, args, options, detach):
    """They change the output, and see it, as in the layer of ``bcos``."""
    results = []
    for layer in pair(name, args, options):
        layer.double().set_explanation_mode(detach)
        fused = layer(example(layer))
        layer.linear.register_forward_hook(lambda part, args, y: 2 * y)
        layer.linear.register_forward_pre_hook(lambda part, args: (args[0] + 0.5,))
        torch.manual_seed(1)
        x = example(layer).requires_grad_()
        y = layer(x)
        assert y.dtype == fused.dtype
        results.append([y, *torch.autograd.grad(y.sin().sum(), [x, layer.linear.weight])])
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size, groups", [((8, 6, 3, 3), 1), ((4, 6, 5, 5), 1), ((8, 3, 1, 1), 2)])
def test_a_weight_of_another_size_than_the_layer_was_made_with(size, groups):
    """It is what the layer computes with, whether a hook sees the call of the linear part or not."""
    layer = bk.BcosConv2d(6, 2, 3, padding=1, max_out=2, groups=groups).double()
    layer.linear.weight = nn.Parameter(torch.randn(size, dtype=torch.float64))
    x = example(layer)
    fused = layer(x)
    layer.linear.register_forward_hook(lambda *_: None)
    assert fused.shape[1] == size[0] // 2 and torch.allclose(layer(x), fused, rtol=1e-12)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("make", [lambda: bk.BcosConv2d(6, 2, 3, max_out=2), lambda: bk.BcosLinear(6, 2, max_out=2)])
def test_a_weight_that_max_out_does_not_divide(make, hooked):
    layer = make()
    layer.linear.weight = nn.Parameter(torch.randn(5, *layer.linear.weight.shape[1:]))
    if hooked:
        layer.linear.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"max_out=2 does not divide the (weight's 5 filters|5 outputs of the linear)"):
        layer(example(layer).float())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: bk.BcosConv1d(6, 4, 3, padding=1, max_out=2), (2, 6, 9)),
        (lambda: bk.BcosConv3d(6, 4, 3, b=1), (6, 5, 4, 3)),
        (lambda: bk.BcosConv2d(6, 4, 3, b=nn.Parameter(torch.tensor(1.5)), normalize_weights=False), (6, 5, 5)),
        (lambda: bk.BcosConv2d(6, 4, 1, out_dtype=torch.bfloat16), (2, 6, 5, 5)),
        (lambda: bk.BcosLinear(6, 4, max_out=3), (6,)),
    ],
)
def test_a_hook_that_only_looks_changes_nothing(make, shape, dtype):
    """Every rank and, under autocast, the same dtype."""
    layer, x = make(), torch.randn(shape)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        fused = layer(x)
        layer.linear.register_forward_hook(lambda *args: seen.append(args))
        seen: list = []
        y = layer(x)
    assert len(seen) == 1 and y.dtype == fused.dtype and y.shape == fused.shape
    assert torch.allclose(y, fused, rtol=1e-5 if dtype is None else 0.03, atol=1e-6 if dtype is None else 0.03)
    assert "has a hook" in bk.report(layer).table()


def test_pruned_filters_are_trained():
    """``torch.nn.utils.prune`` and the old ``weight_norm`` set the weight in a hook of the linear part."""
    results = []
    for layer in pair("BcosConv2d", (6, 4, 3), {}):
        layer.double()
        prune.l1_unstructured(layer.linear, "weight", 0.5)
        optimizer = torch.optim.SGD(layer.parameters(), 1.0)
        torch.manual_seed(1)
        x = example(layer)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        results.append(layer(x))
    assert torch.allclose(*results, rtol=1e-9)


def test_a_norm_of_ones_own():
    """On the instance or in a subclass, also once the layer was compiled."""

    class Mine(bk.BcosConv2d):
        def calc_patch_norms(self, in_tensor):
            return 2 * super().calc_patch_norms(in_tensor)

    layer = bk.BcosConv2d(6, 4, 3)
    x = torch.randn(2, 6, 5, 5)
    torch._dynamo.reset()
    compiled, y = torch.compile(layer, backend="eager", fullgraph=True), layer(x)
    assert torch.allclose(compiled(x), y)
    assert torch.allclose(layer_with(Mine(6, 4, 3), layer)(x), y / 2, rtol=1e-5)
    assert "Mine overrides calc_patch_norms" in bk.report(Mine(6, 4, 3)).table()
    layer.calc_patch_norms = lambda x: x.new_ones(1)
    assert "its calc_patch_norms was assigned" in bk.report(layer).table()
    linear = layer.linear(x)
    assert torch.allclose(layer(x), linear * linear.abs(), rtol=1e-5)
    assert torch.allclose(compiled(x), layer(x))


def layer_with(layer, other):
    layer.load_state_dict(other.state_dict())
    return layer


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_linear_takes_every_rank(rank):
    layer = bk.BcosLinear(6, 4, dtype=torch.float64)
    x = torch.randn(*range(2, 1 + rank), 6, dtype=torch.float64)
    assert x.dim() == rank
    expected = layer(x.reshape(-1, 6)).view(*x.shape[:-1], 4)
    assert torch.equal(layer(x), expected)


def test_learned_exponent():
    layer = bk.BcosConv2d(6, 4, 3, b=nn.Parameter(torch.tensor(1.5)))
    assert set(layer.state_dict()) == {"b", "linear.weight"}
    assert layer.extra_repr() == "B=1.5,"
    assert layer.to("meta").extra_repr() == "B=a tensor without a value,"
    layer = bk.BcosConv2d(6, 4, 3, b=nn.Parameter(torch.tensor(1.5)))
    layer(torch.randn(2, 6, 5, 5)).sum().backward()
    assert layer.b.grad is not None and layer.b.grad != 0


def test_normed_layers_and_zero_filters():
    for layer, x in (
        (NormedConv2d(6, 4, 3), torch.randn(2, 6, 5, 5)),
        (NormedLinear(6, 4), torch.randn(3, 6)),
    ):
        layer, x = layer.double(), x.double()
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        unit = layer.weight / layer.weight.flatten(1).norm(dim=1).view(shape)
        expected = F.linear(x, unit, layer.bias) if x.dim() == 2 else F.conv2d(x, unit, layer.bias)
        assert torch.allclose(layer(x), expected, rtol=1e-12)
        with torch.no_grad():
            layer.weight[0] = 0
            layer.bias.zero_()
        y = layer(x)
        y.sum().backward()
        assert (y[:, 0] == 0).all()
        assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("make", [lambda: bk.BcosConv2d(6, 4, 3, b=1.5), lambda: bk.BcosLinear(6, 4)])
def test_copies(make):
    layer = make().double()
    layer.set_explanation_mode()
    x = example(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.detach is True
        assert torch.equal(other(x), layer(x))


def test_explanation_mode_of_bcos():
    model = nn.Sequential(bk.BcosConv2d(6, 4, 3), nn.ReLU(), bk.BcosConv2d(4, 4, 1))
    with bcos.explanation_mode(model):
        assert [model[0].detach, model[2].detach] == [True, True]
    assert [model[0].detach, model[2].detach] == [False, False]


def test_low_precision_outputs_under_autocast():
    x = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert bk.BcosLinear(6, 4)(x).dtype == torch.float32
        assert bk.BcosLinear(6, 4, out_dtype=torch.bfloat16)(x).dtype == torch.bfloat16
    assert bk.BcosLinear(6, 4, out_dtype=torch.bfloat16)(x).dtype == torch.float32


def test_the_backend_is_taken_or_refused():
    layer = bk.BcosConv2d(6, 4, 3, max_out=256, backend="cpu")
    with pytest.raises(ValueError, match="backend='cpu' cannot serve"):
        layer(torch.randn(1, 6, 5, 5))
    layer.backend = "reference"
    assert layer(torch.randn(1, 6, 5, 5)).shape == (1, 4, 3, 3)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: bk.BcosConv2d(6, 4, 3, b=0.5), ValueError, "b=0.5: must be finite and at least 1"),
        (lambda: bk.BcosConv2d(6, 4, 3, b="2"), TypeError, "b='2': a float of at least 1"),
        (lambda: bk.BcosConv2d(6, 4, 3, b=torch.ones(2)), ValueError, "b: a tensor must hold one"),
        (lambda: bk.BcosConv2d(6, 4, 3, b=math.nan), ValueError, "b=nan"),
        (lambda: bk.BcosConv2d(6, 4, 3, max_out=0), ValueError, "max_out=0: must be at least 1"),
        (lambda: bk.BcosConv2d(6, 4, 3, max_out=1.5), TypeError, "max_out=1.5: an int"),
        (lambda: bk.BcosConv2d(0, 4, 3), ValueError, "in_channels=0"),
        (lambda: bk.BcosConv2d(6, -1, 3), ValueError, "out_channels=-1"),
        (lambda: bk.BcosConv2d(6, 4, 0), ValueError, "kernel_size=0"),
        (lambda: bk.BcosConv2d(6, 4, (3, 3, 3)), ValueError, "kernel_size=\\(3, 3, 3\\)"),
        (lambda: bk.BcosConv2d(6, 4, 3, stride=0), ValueError, "stride=0"),
        (lambda: bk.BcosConv2d(6, 4, 3, dilation=(1, 0)), ValueError, "dilation=0"),
        (lambda: bk.BcosConv2d(6, 4, 3, padding=-1), ValueError, "padding=-1"),
        (lambda: bk.BcosConv2d(6, 4, 3, padding="full"), ValueError, "padding='full': an int, a tuple"),
        (
            lambda: bk.BcosConv2d(6, 4, 3, stride=2, padding="same"),
            ValueError,
            "padding='same' needs stride 1",
        ),
        (lambda: bk.BcosConv2d(6, 4, 3, padding_mode="mirror"), ValueError, "padding_mode='mirror': allowed"),
        (lambda: bk.BcosConv2d(6, 4, 3, groups=4), ValueError, "groups=4 does not divide in_channels=6"),
        (lambda: bk.BcosConv2d(6, 4, 3, groups=3), ValueError, "groups=3 does not divide out_channels=4"),
        (
            lambda: bk.BcosConv2dWithScale(6, 4, 3, scale=1.0),
            ValueError,
            "scale=1.0: another scale is needed",
        ),
        (lambda: bk.BcosConv2dWithScale(6, 4, 3, scale=0), ValueError, "scale=0: must be finite and above 0"),
        (lambda: bk.BcosConv2dWithScale(6, 4, 3, scale="x"), TypeError, "scale='x': a float"),
        (lambda: bk.BcosConv2dWithScale(6, 4, 3, scale_factor=0), ValueError, "scale_factor=0"),
        (lambda: bk.BcosLinear(6, 4, bias=True), ValueError, "bias=True: a B-cos layer has no bias"),
        (lambda: bk.BcosLinear(6.0, 4), TypeError, "in_features=6.0: an int"),
        (lambda: bk.BcosLinear(6, 0), ValueError, "out_features=0"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
