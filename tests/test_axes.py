"""What convolutions with one and with three axes, and padding that is not zeros, have of their own."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import IDS, bcos, error
from torch import nn

import bcos_kernels as bk
from bcos_kernels import _C
from bcos_kernels.functional import bcos_conv1d, bcos_conv2d, bcos_conv3d

MODULES = {1: bk.BcosConv1d, 2: bk.BcosConv2d, 3: bk.BcosConv3d}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS = {1: bcos_conv1d, 2: bcos_conv2d, 3: bcos_conv3d}


def image(axes: int, channels: int = 6, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(2, channels, *(5, 6, 7)[:axes], dtype=dtype)


@pytest.mark.parametrize("axes", MODULES)
def test_a_module_is_a_layer_of_torch_with_the_state_dict_of_one(axes):
    layer = MODULES[axes](6, 8, 3, padding=1, max_out=2, dtype=torch.float64)
    plain = PLAIN[axes](6, 16, 3, padding=1, bias=False, dtype=torch.float64)
    assert isinstance(layer.linear, PLAIN[axes]) and [*layer.state_dict()] == ["linear.weight"]
    layer.linear.load_state_dict(plain.state_dict())
    x = image(axes)
    expected = FUNCTIONS[axes](x, plain.weight, padding=1, max_out=2, backend="reference")
    for same in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert error(same(x), expected) < 1e-13
        assert error(same(x[0]), expected[0]) < 1e-13
    raw = MODULES[axes](6, 8, 3, normalize_weights=False)
    assert type(raw.linear) is PLAIN[axes]


@pytest.mark.parametrize("axes", MODULES)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_patch_norms(axes, mode):
    layer = MODULES[axes](6, 4, 3, padding=1, padding_mode=mode, groups=2, dtype=torch.float64)
    x = image(axes)
    squares = PLAIN[axes](6, 2, 3, padding=1, groups=2, bias=False, dtype=torch.float64)
    nn.init.ones_(squares.weight)
    expected = (squares(x.square()) + 1e-6).sqrt().repeat_interleave(2, 1)
    assert error(layer.calc_patch_norms(x), expected) < 1e-14
    assert error(layer.calc_patch_norms(x[0]), expected[0]) < 1e-14


@pytest.mark.parametrize("axes", MODULES)
def test_padding_same_where_the_ends_differ(axes):
    x, weight = image(axes), torch.randn(4, 6, *(4, 2, 3)[:axes], dtype=torch.float64)
    unit = weight / weight.flatten(1).norm(dim=1).view(-1, 1, *[1] * axes)
    plain = getattr(F, f"conv{axes}d")
    for mode in ("zeros", "replicate"):
        pads = [n for k in reversed(weight.shape[2:]) for n in ((k - 1) // 2, k // 2)]
        padded = F.pad(x, pads, mode="constant" if mode == "zeros" else mode)
        y = FUNCTIONS[axes](x, weight, padding="same", padding_mode=mode, b=1)
        assert error(y, plain(padded, unit)) < 1e-14 and y.shape[2:] == x.shape[2:]
        for backend in ("cpu", "reference"):
            norm = (plain(F.pad(x, pads).square(), torch.ones_like(weight)) + 1e-6).sqrt()
            expected = plain(padded, unit).square() / norm * plain(padded, unit).sign()
            y = FUNCTIONS[axes](x, weight, padding="same", padding_mode=mode, backend=backend)
            assert error(y, expected) < 1e-13


@pytest.mark.parametrize("name", ["conv1d", "conv3d", "conv3d_circular", "reflect"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_both_explanation_modes(name, backend):
    """The early and the late mode give the gradient whose scale is a constant."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float64)
    y = case(x, weight, backend=backend)
    frozen = case(x, weight, backend="reference", detach=True)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(frozen, x, grad)
    late = {"fixed_weights": False}
    outputs = case(x, weight, backend=backend, detach=True), case(x, weight, backend=backend, detach=late)
    late["fixed_weights"] = True
    for output in outputs:
        assert error(output, y) < 1e-14
        assert error(torch.autograd.grad(output, x, grad)[0], expected) < 1e-13


def test_memory_formats_are_those_of_torch():
    x = image(3, dtype=torch.float32)
    layer, plain = bk.BcosConv3d(6, 8, 3, padding=1), nn.Conv3d(6, 8, 3, padding=1)
    for given in (x, x.contiguous(memory_format=torch.channels_last_3d)):
        given = given.clone().requires_grad_()
        y = layer(given)
        assert y.stride() == plain(given).stride()
        assert torch.autograd.grad(y.sum(), given)[0].stride() == given.stride()


def test_tokens_are_convolved_without_a_copy_of_their_order():
    """``[N, L, C]`` seen as ``[N, C, L]`` is an image whose channels lie side by side, and stays one."""
    tokens = torch.randn(2, 9, 16)
    y = bk.BcosConv1d(16, 8, 3, padding=1)(tokens.transpose(1, 2))
    assert y.shape == (2, 8, 9) and y.stride(1) == 1


@pytest.mark.parametrize("name", ["conv1d", "conv3d_b1.5", "circular"])
def test_autocast(name):
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = case(x, weight)
    assert y.dtype == torch.float32
    assert error(y, case(x, weight)) < 2e-2
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.dtype == dw.dtype == torch.float32


@pytest.mark.parametrize("name", ["conv1d", "conv3d", "conv3d_circular", "circular"])
def test_gradients_and_batches_of_them(name):
    """Its first derivatives are right by finite differences, and a batch of gradients gives the same as each."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float64)
    y = case(x, weight)
    rows = torch.randn(3, *y.shape, dtype=torch.float64)
    (many,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
    for row, found in zip(rows, many, strict=True):
        assert error(found, torch.autograd.grad(y, x, row, retain_graph=True)[0]) < 1e-13
    assert torch.autograd.gradcheck(lambda *t: case(*t), (x, weight))


@pytest.mark.parametrize("axes", MODULES)
def test_a_report_says_who_serves_a_layer(axes):
    model = nn.Sequential(MODULES[axes](4, 4, 3, padding=2, padding_mode="reflect"), MODULES[axes](4, 4, 3, b=1.5))
    assert [row.backend for row in bk.report(bk.accelerate(model)).layers] == ["cpu", "cpu"]
    assert bk.report(model, image(axes, 4, torch.float32)).layers


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_a_layer_of_the_reference_is_served_in_every_padding_mode(mode):
    theirs = bcos.modules.BcosConv2d(4, 6, 3, padding=1, padding_mode=mode, b=1.5, dtype=torch.float64)
    ours = bk.accelerate(copy.deepcopy(theirs), backend="cpu")
    x = image(2, 4).requires_grad_()
    results = []
    for layer in (theirs, ours):
        y = layer(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.linear.weight))))
    assert bk.report(ours).layers[0].backend == "cpu"
    assert all(error(mine, truth) < 1e-13 for truth, mine in zip(*results, strict=True))


BAD = [
    (lambda: bcos_conv1d(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3)), r"x has shape \(1, 2, 3, 4\): \(N, C, L\) or"),
    (lambda: bcos_conv3d(torch.ones(1, 2), torch.ones(1, 2, 3, 3, 3)), r"x has shape \(1, 2\): \(N, C, D, H, W\) or"),
    (lambda: bcos_conv1d(torch.ones(1, 2, 9), torch.ones(1, 2, 3, 3)), "weight has shape .*: 3 non-empty dimensions"),
    (
        lambda: bcos_conv1d(torch.ones(1, 2, 9), torch.ones(1, 2, 3), stride=(1, 1)),
        "stride=.*: an int, or a tuple of one",
    ),
    (lambda: bcos_conv3d(torch.ones(1, 2, 9, 9, 9), torch.ones(1, 2, 3, 3, 3), padding=(1, 1)), "one or three ints"),
    (lambda: bcos_conv1d(torch.ones(1, 2, 2), torch.ones(1, 2, 3)), "the kernel spans 3 pixels of length, more than"),
    (lambda: bcos_conv3d(torch.ones(1, 2, 2, 9, 9), torch.ones(1, 2, 3, 3, 3)), "the kernel spans 3 pixels of depth"),
    (
        lambda: bcos_conv3d(torch.ones(1, 2, 2, 9, 9), torch.ones(1, 2, 1, 1, 1), padding=2, padding_mode="reflect"),
        "padding=2 is too large for padding_mode='reflect' at depth 2",
    ),
    (lambda: bk.BcosConv1d(2, 2, (3, 3)), r"kernel_size=\(3, 3\): an int, or a tuple of one int is needed"),
    (lambda: bk.BcosConv3d(2, 2, 3, padding="full"), "padding='full': an int, a tuple of three ints, 'same' or"),
    (
        lambda: bk.BcosConv3d(2, 2, 3, padding="same", stride=(1, 1, 2)),
        r"padding='same' needs stride 1, not \(1, 1, 2\)",
    ),
]


@pytest.mark.parametrize("call, message", BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


OPTIONS = {
    "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "max_out": 1, "b": 2.0, "unit": True,
    "norm_eps": (1e-6, 0.0), "cos_eps": 1e-6, "exact_two": True, "out_dtype": torch.float32,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"padding": (1, 1, 1)}, "padding has 3 values, allowed: 2"),
        ({"border": (1, 1)}, "border has 2 values, allowed: 4"),
        ({"border": (1, 1, 0, 0), "padding": (1, 1)}, "padding is 1, allowed: 0 beside a border"),
        ({"border": (1, 1), "stride": (), "padding": (), "dilation": ()}, "border has 2 values, allowed: none"),
    ],
)
def test_options_of_the_kernels(changed, message):
    assert _C.TransformSpec(**OPTIONS).border == ()
    with pytest.raises(ValueError, match=message):
        _C.TransformSpec(**OPTIONS | changed)


def test_a_border_leaves_something_of_x():
    spec = _C.TransformSpec(**OPTIONS | {"border": (2, 2, 0, 0)})
    with pytest.raises(ValueError, match="border is 2 and 2, allowed: less than x's 4 positions"):
        _C.transform_forward(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 1, 1), None, None, spec)


def test_narrow_groups_of_flat_volumes():
    """The kernels of narrow groups take a volume of one slice as an image."""
    x = torch.randn(2, 8, 1, 6, 5).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(8, 4, 1, 3, 3)
    found = bk.functional.bcos_conv3d(x, weight, padding=(0, 1, 1), groups=2)
    wanted = bk.functional.bcos_conv2d(x[:, :, 0].double(), weight[:, :, 0].double(), padding=1, groups=2)
    torch.testing.assert_close(found[:, :, 0].double(), wanted, rtol=1e-5, atol=1e-6)
