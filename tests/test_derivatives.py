"""Derivatives wherever PyTorch takes them: nested torch.func, direct operators, exported and traced programs."""

import io
import itertools
from contextlib import nullcontext

import pytest
import torch
from cases import IDS, error, thinned
from torch import nn
from torch.autograd import grad, gradgradcheck

import bcos_kernels as bk
from bcos_kernels.core import autograd
from bcos_kernels.core.op import Op
from bcos_kernels.transform import Inputs, Spec, reference

bcos_conv2d, bcos_linear = bk.functional.bcos_conv2d, bk.functional.bcos_linear


def conv_layers(b):
    """The fused and the reference layer as functions of one tensor that is both input and weight."""
    spec = Spec((1, 1), (1, 1), (1, 1), b=b, out_dtype=torch.float64)
    return (
        lambda u: bcos_conv2d(u, 0.7 * u.flip(0), padding=1, b=b),
        lambda u: reference.transform(Inputs(u, 0.7 * u.flip(0), None, None), spec),
    )


def linear_layers(b):
    spec = Spec(b=b, norm_eps=(0.0, 1e-12), out_dtype=torch.float64)
    return (
        lambda u: bcos_linear(u, 0.7 * u.flip(0), b=b),
        lambda u: reference.transform(Inputs(u, 0.7 * u.flip(0), None, None), spec),
    )


def of_grad(f):
    return torch.func.grad(lambda u: f(u).sin().sum())


def of_vjp(f):
    def pulled_back(u):
        y, vjp = torch.func.vjp(f, u)
        return vjp(torch.cos(y))[0]

    return pulled_back


def of_jvp(f):
    return lambda u: torch.func.jvp(f, (u,), (torch.cos(u),))[1]


def of_vmap(f):
    return lambda u: torch.func.vmap(f)(torch.stack([u, 0.5 * u.flip(0)])).sum(0)


def of_jacrev(f):
    return lambda u: torch.func.jacrev(lambda v: f(v).flatten()[:3])(u).sum(0)


TRANSFORMS = {"grad": of_grad, "vjp": of_vjp, "jvp": of_jvp, "vmap": of_vmap, "jacrev": of_jacrev}
LAYERS = {"conv": (conv_layers, (2, 2, 2, 3)), "linear": (linear_layers, (3, 4))}
NESTED = [
    (noun, b, names)
    for depth in (1, 2, 3)
    for names in itertools.product(TRANSFORMS, repeat=depth)
    for noun, b in itertools.product(LAYERS, (2.0, 1.5))
    if depth < 3 or (noun, b) in (("conv", 2.0), ("linear", 1.5))
]


@pytest.mark.parametrize(
    "noun, b, names",
    thinned(NESTED, lambda noun, b, names: len(names) < 3),
    ids=lambda v: "-".join(v) if isinstance(v, tuple) else str(v),
)
def test_nested_transforms(noun, b, names):
    """Every combination of torch.func's transforms, the first one innermost, gives what it gives for the reference."""
    make, shape = LAYERS[noun]
    point, results = torch.randn(shape, dtype=torch.float64), []
    for f in make(b):
        for name in names:
            f = TRANSFORMS[name](f)
        results.append(f(point))
    assert error(*results) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("noun, names", [
    *itertools.product(LAYERS, [("vmap",), ("grad",), ("jvp",)]),
    ("conv", ("grad", "vmap")), ("linear", ("vmap", "grad")), ("conv", ("vjp", "grad")),
])  # fmt: skip
def test_compiled_transforms(noun, names):
    """A compiler sees both layers as one operator, so that one of them shows how two transforms are nested."""
    torch._dynamo.reset()
    make, shape = LAYERS[noun]
    f, _ = make(2.0)
    for name in names:
        f = TRANSFORMS[name](f)
    point = torch.randn(shape, dtype=torch.float64)
    assert error(torch.compile(lambda u: f(u), fullgraph=True, backend="aot_eager")(point), f(point)) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)])
def test_compiled_vmap_of_a_convolution(in_dims):
    torch._dynamo.reset()
    shapes = ((2, 4, 5, 5), (6, 4, 3, 3))
    args = [torch.randn(*((3,) if d == 0 else ()), *shape) for d, shape in zip(in_dims, shapes, strict=True)]
    batched = torch.vmap(bcos_conv2d, in_dims)
    assert error(torch.compile(batched, fullgraph=True, backend="aot_eager")(*args), batched(*args)) < 1e-6


def called_directly(noun, x, weight, bias, b, detach):
    """y of ``torch.ops.bcos_kernels``, with the default options of the functional layers."""
    window = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)} if noun == "conv2d" else {}
    tensor_b = b if isinstance(b, torch.Tensor) else None
    spec = Spec(
        **window, b=b if tensor_b is None else None, norm_eps=(1e-6, 0.0) if window else (0.0, 1e-12),
        detach=detach, out_dtype=x.dtype,
    )  # fmt: skip
    return torch.ops.bcos_kernels.transform(x, weight, bias, tensor_b, *spec.flat(), "cpu")[0]


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("b", [1.0, 2.0, 1.5, "tensor"])
@pytest.mark.parametrize("noun", ["conv2d", "linear"])
def test_operators_called_directly_train(noun, b, detach):
    """dx, dw, dbias and db of first and second order, in and out of the early explanation mode."""
    gen = torch.Generator().manual_seed(1)
    shapes = ((2, 4, 5, 5), (3, 4, 3, 3)) if noun == "conv2d" else ((5, 4), (3, 4))
    inputs = [torch.randn(s, generator=gen, dtype=torch.float64).requires_grad_() for s in (*shapes, (3,))]
    if b == "tensor":
        b = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
        inputs.append(b)
    x, weight, bias = inputs[:3]
    options = {"b": b, "detach": detach, "backend": "reference"}
    layer, geometry = (bcos_conv2d, {"padding": 1}) if noun == "conv2d" else (bcos_linear, {})
    found, expected = [], []
    for results, y in (
        (found, called_directly(noun, x, weight, bias, b, detach)),
        (expected, layer(x, weight, bias, **geometry, **options)),
    ):
        upward = torch.cos(y.detach()).requires_grad_()
        first = grad(y, inputs, upward, create_graph=True)
        second = grad(sum(g.sin().sum() for g in first), [*inputs, upward], allow_unused=True, materialize_grads=True)
        results += [y, *first, *second]
    for mine, yours in zip(found, expected, strict=True):
        assert error(mine, yours) < 1e-11


def test_third_order():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def first_order(x, weight):
        return grad(bcos_linear(x, weight).sin().sum(), (x, weight), create_graph=True)

    assert gradgradcheck(first_order, (x, weight))


class Network(torch.nn.Module):
    """Two B-cos layers of our own, the second with an exponent that saves l."""

    def __init__(self, detach=False):
        super().__init__()
        self.conv, self.head = bk.BcosConv2d(4, 6, 3, padding=1, max_out=2), bk.BcosLinear(6, 3, b=1.5)
        for layer in (self.conv, self.head):
            layer.set_explanation_mode(detach)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def gradients(network, x):
    x = x.clone().requires_grad_()
    return grad(network(x).sin().sum(), [x, *network.parameters()])


def saved_and_loaded(save, load, program):
    buffer = io.BytesIO()
    save(program, buffer)
    buffer.seek(0)
    return load(buffer)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_train(strict, detach):
    """Before and after torch.export.save and load, and decomposed to aten."""
    network, x = Network(detach), torch.randn(2, 4, 6, 6)
    program = torch.export.export(network, (x,), strict=strict)
    assert not any("conv2d" in str(node.target) for node in program.graph.nodes)  # the operator, and not its parts
    again = saved_and_loaded(torch.export.save, torch.export.load, program)
    for module in (program.module(), again.module(), program.run_decompositions().module()):
        for mine, yours in zip(gradients(module, x), gradients(network, x), strict=True):
            assert error(mine, yours) < 1e-6


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_keeps_the_late_mode_it_was_made_in(strict):
    class Late(torch.nn.Module):
        def __init__(self, state):
            super().__init__()
            self.state = state

        def forward(self, x, weight):
            return bcos_conv2d(x, weight, padding=1, detach=self.state)

    x, weight, _ = IDS["conv3x3"].inputs(torch.float64)
    for fixed in (False, True):
        program = torch.export.export(Late({"fixed_weights": fixed}), (x, weight), strict=strict).module()
        expected = grad(bcos_conv2d(x, weight, padding=1, detach=fixed).sum(), (x, weight))
        for mine, yours in zip(grad(program(x, weight).sum(), (x, weight)), expected, strict=True):
            assert error(mine, yours) < 1e-13


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_traces_train():
    """torch.jit.trace with its own checks and the grad mode on; saved, loaded, at another size."""
    network, x = Network(), torch.randn(2, 4, 6, 6)
    traced = torch.jit.trace(network, x)
    again = saved_and_loaded(torch.jit.save, torch.jit.load, traced)
    other = torch.randn(3, 4, 7, 5)
    for program in (traced, again):
        for _ in range(3):  # the second run is optimised by what the first one showed
            assert error(program(other), network(other)) < 1e-6
            for mine, yours in zip(gradients(program, other), gradients(network, other), strict=True):
                assert error(mine, yours) < 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["conv3x3", "reflect", "depthwise", "linear_3d", "b1"])
def test_traces_of_functional_layers(name):
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float32)
    traced = saved_and_loaded(torch.jit.save, torch.jit.load, torch.jit.trace(lambda x, w: case(x, w), (x, weight)))
    larger = torch.randn(x.shape[0] + 1, *x.shape[1:], requires_grad=True)
    assert error(traced(larger, weight), case(larger, weight)) < 1e-6
    for mine, yours in zip(
        grad(traced(larger, weight).sum(), (larger, weight)), grad(case(larger, weight).sum(), (larger, weight)),
        strict=True,
    ):  # fmt: skip
        assert error(mine, yours) < 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_takes_standard_operators(dynamo):
    onnx = pytest.importorskip("onnx")
    if dynamo:
        pytest.importorskip("onnxscript")
    buffer = io.BytesIO()
    torch.onnx.export(Network(), (torch.randn(2, 4, 6, 6),), buffer, dynamo=dynamo)
    model = onnx.load_from_string(buffer.getvalue())
    assert {node.domain for node in model.graph.node} <= {"", "pkg.torch.onnx"}


def test_an_onnx_export_records_no_operator_of_ours(monkeypatch):
    """What both exporters see: without the packages of ONNX."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    network, x = Network(), torch.randn(2, 4, 6, 6)
    program = torch.export.export(network, (x,))
    assert not any("bcos_kernels" in str(node.target) for node in program.graph.nodes)
    assert error(program.module()(x), network(x)) < 1e-6


@pytest.mark.parametrize("explains", [False, True])
def test_a_traced_attention_has_operators_that_the_older_exporter_of_onnx_knows(explains):
    """It has none for mT, and behind an unflatten it takes the sizes of the example for constants."""
    network = bk.convert(nn.Sequential(nn.Conv2d(3, 8, 1), Tokens()).eval(), logit_bias=None)
    x = torch.rand(2, 6, 2, 3)
    with network.explanation_mode() if explains else nullcontext():
        traced = torch.jit.trace(network, x)
        assert not {"aten::mT", "aten::unflatten"} & {node.kind() for node in traced.inlined_graph.nodes()}
        for larger in (x, torch.rand(3, 6, 2, 3)):
            assert error(traced(larger), network(larger)) < 1e-6


class Tokens(nn.Module):
    """An attention among the pixels."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0]


def test_late_mode_under_transforms():
    """The mapping is read when the pullback runs, and by forward mode when the function does."""
    x, weight, _ = (None if t is None else t.detach() for t in IDS["size2"].inputs(torch.float64))
    state = {"fixed_weights": False}
    _, pullback = torch.func.vjp(lambda x: bcos_conv2d(x, weight, detach=state), x)
    cotangent = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    for fixed in (True, False):
        state["fixed_weights"] = fixed
        frozen = torch.func.vjp(lambda x, fixed=fixed: bcos_conv2d(x, weight, detach=fixed), x)[1]
        assert error(pullback(cotangent)[0], frozen(cotangent)[0]) < 1e-13
        tangents = [
            torch.func.jvp(lambda x, d=detach: bcos_conv2d(x, weight, detach=d), (x,), (cotangent,))[1]
            for detach in (state, fixed)
        ]
        assert error(*tangents) < 1e-13


def test_a_backward_leaves_its_late_mode_to_no_other():
    """Not even one that fails: the operators of the thread's next backward would read it."""
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3)
    y = bcos_conv2d(x, weight, detach={"fixed_weights": True})
    y.sum().backward(retain_graph=True)
    assert autograd._running.late is None
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Op, "backward", lambda *args, **options: 1 / 0)
        y.sum().backward()
    assert autograd._running.late is None


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_frozen_scale_gives_a_learned_exponent_no_gradient(backend):
    """In the late mode, as the scale of the authors' code drops its gradient; the early mode keeps that of b."""
    x, weight, _ = IDS["size2"].inputs(torch.float64)
    b = torch.tensor(1.6, dtype=torch.float64, requires_grad=True)
    for late, has_gradient in (({"fixed_weights": True}, False), ({"fixed_weights": False}, True), (True, True)):
        y = bcos_conv2d(x, weight, b=b, detach=late, backend=backend)
        *others, of_b = torch.autograd.grad(y.sum(), (x, weight, b), allow_unused=True)
        assert (of_b is not None) == has_gradient and all(g.any() for g in others)
