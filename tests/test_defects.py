"""Defects that hit other kernel libraries: the test owed for each (those that need a GPU stand with the GPU tests)."""

import importlib
import textwrap
from functools import partial

import pytest
import torch
from cases import BACKENDS, IDS, bcos, error
from programs import outcome, start
from recorded_calls import by_python
from strides import odd_gradients, odd_views
from torch.autograd import grad

import bcos_kernels as bk
from bcos_kernels.compat import import_reference
from bcos_kernels.core.op import Op

NAMES = [
    "conv3x3",
    "conv1x1",
    "grouped",
    "depthwise",
    "max_out",
    "b1.5",
    "explain",
    "bias_raw",
    "linear",
    "linear_b1.5",
    "conv1d",
    "conv3d",
    "conv3d_circular",
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_strides_are_respected(name, backend):
    case = IDS[name]
    inputs = [t for t in case.inputs(torch.float64) if t is not None]
    y = case(*inputs, backend=backend)
    for kind, g in odd_gradients(y):
        strided = grad(y, inputs, g, retain_graph=True)
        plain = grad(y, inputs, g.clone(memory_format=torch.contiguous_format), retain_graph=True)
        for mine, yours in zip(strided, plain, strict=True):
            assert error(mine, yours) < 1e-13, kind


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_input_strides_are_respected(name, backend):
    case = IDS[name]
    x, weight, bias = (None if t is None else t.detach() for t in case.inputs(torch.float64))
    expected = case(x, weight, bias, backend=backend)
    for strided in odd_views(x):
        assert error(case(strided, weight, bias, backend=backend), expected) < 1e-13
    strided_weight = torch.stack([weight, weight], -1)[..., 1]
    assert error(case(x, strided_weight, bias, backend=backend), expected) < 1e-13
    rows = x[:1].expand(3, *x.shape[1:])
    assert error(case(rows, weight, bias, backend=backend)[2:], expected[:1]) < 1e-13


@pytest.mark.parametrize("scale", [1e4, 1e-4])
@pytest.mark.parametrize("name", ["conv3x3", "b1.5", "b2.5", "linear", "max_out", "depthwise"])
def test_large_and_small_inputs(name, scale):
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float32)
    scaled = (scale * x.detach()).requires_grad_()
    y = case(scaled, weight)
    exact = case.naive(scaled.detach().double(), weight.detach().double())
    theirs = case.naive(scaled.detach(), weight.detach())
    floor = exact.norm()
    assert (y.double() - exact).norm() <= 1.1 * (theirs.double() - exact).norm() + 2e-7 * floor
    assert all(torch.isfinite(g).all() for g in grad(y.sum(), (scaled, weight)))


@pytest.mark.parametrize("name", ["conv3x3", "depthwise", "max_out", "linear_wide", "wide_1x1"])
def test_repeats_are_bit_equal(name, several_threads):
    """Threads race over tiles: 250 forward and backward runs give the same bits."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float32, channels_last=True)
    first = None
    upward = torch.randn(case(x, weight).shape)
    for _ in range(250):
        y = case(x, weight)
        run = (y, *grad(y, (x, weight), upward))
        first = first or run
        assert all(torch.equal(a, b) for a, b in zip(run, first, strict=True))


def test_a_sampled_layer_of_few_channels_trains(tmp_path):
    """oneDNN's gradient of the weight of a plain layer of this shape writes beyond its workspace: a program that
    trains one ends in a segmentation fault."""
    program = """
        import torch
        from torch.autograd import grad
        import bcos_kernels as bk

        def gradients(dtype):
            x, weight, v = (t.to(dtype) for t in tensors)
            x.requires_grad_(), weight.requires_grad_()
            y = bk.functional.bcos_conv2d(x, weight, stride=2, detach=True)
            dx, dw = grad(y, (x, weight), torch.ones_like(y), create_graph=True)
            return dw.double(), grad(dx, weight, v)[0].double()

        for _ in range(4):
            x, v = (torch.randn(2, 3, 160, 160).contiguous(memory_format=torch.channels_last) for _ in range(2))
            tensors = [t.bfloat16() for t in (x, torch.randn(16, 3, 1, 1), v)]
            for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
                for found, exact in zip(gradients(dtype), gradients(torch.float64)):
                    assert (found - exact).norm() < most * exact.norm(), dtype
    """
    status, _, errors = outcome(start("-c", textwrap.dedent(program), cwd=tmp_path))
    assert status == 0, errors or status


@pytest.mark.parametrize("name", ["conv3x3", "depthwise", "linear", "linear_wide"])
def test_thread_counts_agree(name):
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float64)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        y = case(x, weight)
        results.append((y, *grad(y.square().sum(), (x, weight))))
    for run in results[1:]:
        for mine, yours in zip(run, results[0], strict=True):
            assert error(mine, yours) < 1e-13


@pytest.mark.parametrize("name", ["conv3x3", "max_out", "b1", "b1.5", "linear"])
def test_partial_gradients(name):
    """Only what is asked for is computed, whatever is asked for."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float64)
    both = grad(case(x, weight).square().sum(), (x, weight))
    (dx,) = grad(case(x, weight.detach()).square().sum(), x)
    (dw,) = grad(case(x.detach(), weight).square().sum(), weight)
    assert error(dx, both[0]) < 1e-14 and error(dw, both[1]) < 1e-14
    assert not case(x.detach(), weight.detach()).requires_grad


@pytest.mark.parametrize("is_leaf", [True, False])
def test_an_explanation_computes_no_weight_gradient(is_leaf, monkeypatch):
    """autograd.grad(y, x) and backward(inputs=[x]) use no dw: a kernel that forms it doubles an explanation's price."""
    asked = []
    by_python(monkeypatch)
    backward = Op.backward
    monkeypatch.setattr(Op, "backward", lambda *args: asked.append(tuple(args[6])) or backward(*args))
    x, weight, _ = IDS["conv3x3"].inputs(torch.float64)
    x = x if is_leaf else x * 1
    y = IDS["conv3x3"](x, weight).sum()
    grad(y, x, retain_graph=True)
    grad(y, weight, retain_graph=True)
    grad(y, (x, weight), retain_graph=True)
    y.backward(inputs=[weight], retain_graph=True)
    y.backward()
    assert [a[:2] for a in asked] == [(True, False), (False, True), (True, True), (False, True), (True, True)]


@pytest.mark.parametrize("is_leaf", [True, False])
def test_an_explanation_computes_no_weight_gradient_in_the_extension(is_leaf):
    """The same where no step of the backward is Python's: each gradient of a linear layer is one product."""

    def products(y, *wanted):
        with torch.profiler.profile() as recorded:
            grad(y, wanted, retain_graph=True)
        return sum(event.name == "aten::mm" for event in recorded.events())

    x, weight, _ = IDS["linear"].inputs(torch.float64)
    x = x if is_leaf else x * 1
    y = IDS["linear"](x, weight).sum()
    assert [products(y, x), products(y, weight), products(y, x, weight)] == [1, 1, 2]


def test_saved_memory_is_that_of_a_plain_layer():
    """b = 2 saves x, w, y and the patch norm: over a stack, where y is the next layer's x, a plain stack's bytes."""

    def saved_bytes(layer):
        storages = {}

        def pack(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x = torch.randn(2, 64, 16, 16, requires_grad=True)
        weights = [torch.randn(64, 64, 3, 3, requires_grad=True) for _ in range(6)]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            for weight in weights:
                x = layer(x, weight)
        weight_bytes = sum(w.untyped_storage().nbytes() for w in weights)
        return sum(storages.values()) - weight_bytes

    ours = saved_bytes(lambda x, w: bk.functional.bcos_conv2d(x, w, padding=1))
    plain = saved_bytes(lambda x, w: torch.nn.functional.conv2d(x, w, padding=1))
    last_output = 2 * 64 * 16 * 16 * 4
    assert ours - last_output <= 1.05 * plain


class Marked(torch.Tensor):
    """A subclass with the default ``__torch_function__``."""


class MarkedParameter(torch.nn.Parameter):
    pass


@pytest.mark.parametrize("name", ["conv3x3", "linear", "linear_3d", "b1.5"])
def test_subclasses_keep_their_type(name):
    """The output is of the type that the plain layer gives, and gradients pass."""
    case = IDS[name]
    plain = torch.nn.functional.linear if case.is_linear else torch.nn.functional.conv2d
    x, weight, _ = case.inputs(torch.float32)
    expected = case(x, weight)
    for a, b in (
        (x.as_subclass(Marked), weight),
        (x, weight.as_subclass(Marked)),
        (x, MarkedParameter(weight.detach())),
        (x, torch.nn.Parameter(weight.detach().as_subclass(Marked))),
    ):
        y = case(a, b)
        assert type(y) is type(plain(a, b))
        assert torch.equal(y.as_subclass(torch.Tensor), expected)
        y.sum().backward()
    assert type(case(x.as_subclass(Marked), weight)) is Marked


@pytest.mark.parametrize("marked", [0, 1])
@pytest.mark.parametrize("name", ["norm", "norm with statistics", "dynamic_alignment"])
def test_subclasses_keep_their_type_in_the_other_functions(name, marked):
    x, weights = torch.rand(2, 4, 6, 6), (torch.rand(2, 4, 3, 3), torch.rand(36 * 3, 2, 1, 1))
    call, tensors = {
        "norm": (bk.functional.norm, (x, torch.rand(4))),
        "norm with statistics": (partial(bk.functional.norm, return_statistics=True), (x, torch.rand(4))),
        "dynamic_alignment": (bk.functional.dynamic_alignment, (x, *weights)),
    }[name]
    expected, found = (
        results if isinstance(results, tuple) else (results,)
        for results in (
            call(*tensors),
            call(*(t.as_subclass(Marked) if i == marked else t for i, t in enumerate(tensors))),
        )
    )
    assert {type(t) for t in found} == {Marked}
    assert all(torch.equal(a.as_subclass(torch.Tensor), b) for a, b in zip(found, expected, strict=True))


def test_a_device_context_changes_no_call():
    x, weight, _ = IDS["conv3x3"].inputs(torch.float32)
    with torch.device("meta"):
        assert not IDS["conv3x3"](x, weight).is_meta


def test_an_exponent_of_true_is_one():
    """As in the reference, where True == 1."""
    x, weight, _ = IDS["conv3x3"].inputs(torch.float32)
    assert torch.equal(IDS["conv3x3"](x, weight, b=True), IDS["conv3x3"](x, weight, b=1))
    ours = bk.BcosConv2d(6, 5, 3, padding=1, b=True)
    theirs = bcos.modules.BcosConv2d(6, 5, 3, padding=1, b=True)
    theirs.load_state_dict(ours.state_dict())
    assert error(ours(x), theirs(x)) < 1e-6
    assert bk.BcosLinear(3, 2, b=True)(torch.randn(4, 3)).shape == (4, 2)
    with pytest.raises(TypeError, match="b=False: a float of at least 1"):
        IDS["conv3x3"](x, weight, b=False)


@pytest.mark.parametrize("which", ["x", "weight"])
def test_complex_tensors_are_refused_by_dtype(which):
    tensors = dict(zip(("x", "weight"), IDS["conv3x3"].inputs(torch.float32), strict=False))
    tensors[which] = tensors[which].to(torch.complex64)
    with pytest.raises(TypeError, match=f"{which} has dtype torch.complex64: a floating-point dtype is needed"):
        bk.functional.bcos_conv2d(**tensors)


@pytest.mark.parametrize("rank", range(1, 6))
def test_linear_of_every_rank(rank):
    gen = torch.Generator().manual_seed(rank)
    x = torch.randn(*range(2, 1 + rank), 8, generator=gen, dtype=torch.float64)
    weight = torch.randn(5, 8, generator=gen, dtype=torch.float64)
    y = bk.functional.bcos_linear(x, weight)
    assert y.shape == (*x.shape[:-1], 5)
    assert error(y.view(-1, 5), bk.functional.bcos_linear(x.view(-1, 8), weight)) < 1e-14


def _attention_on_meta():
    """An accelerated attention of the reference on the device meta, with the shape of its input."""
    import_reference()
    kind = importlib.import_module("bcos.models.vit").Attention
    attention = kind(8, 2, 4, linear_layer=bk.BcosLinear, norm_layer=torch.nn.LayerNorm)
    return bk.accelerate(torch.nn.Sequential(attention, bk.BcosLinear(8, 8))).to("meta"), (2, 5, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (bk.functional.norm, (2, 4, 5, 5)),
        lambda: (bk.DAUConv2d(4, 6, 3, device="meta"), (2, 4, 5, 5)),
        _attention_on_meta,
    ],
    ids=["norm", "dynamic alignment", "attention"],
)
def test_tensors_without_values(make):
    """The device meta has no autocast that could be switched off."""
    function, shape = make()
    x = torch.empty(shape, device="meta", requires_grad=True)
    y = function(x)
    y.sum().backward()
    assert y.device.type == "meta" and x.grad.shape == x.shape


@pytest.mark.parametrize(
    "make", [bk.BcosConv2d, bcos.modules.BcosConv2d, bk.BcosLinear], ids=lambda cls: cls.__module__
)
def test_inputs_without_values_of_layers_with_values(make):
    """Programs that count operations give a plain layer an input of the device meta, without a copy of its weight."""
    layer, shape = bk.accelerate(torch.nn.Sequential(make(4, 6))), (2, 4) if make is bk.BcosLinear else (2, 4, 5, 5)
    y = layer(torch.empty(shape, device="meta"))
    assert y.is_meta and y.shape == (2, 6, *shape[2:])
