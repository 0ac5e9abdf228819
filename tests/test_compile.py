"""The operators under torch's own machinery: opcheck, torch.compile, torch.export, autocast, checkpointing."""

import pytest
import torch
from cases import IDS, Budget, bcos, error, thinned
from parity import check_autocast
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode

import bcos_kernels as bk
from bcos_kernels import dynamic_alignment, norm, transform
from bcos_kernels.transform.call import of_shapes
from bcos_kernels.transform.functional import plan

NAMES = [
    "conv3x3",
    "grouped",
    "depthwise",
    "max_out",
    "b1",
    "b1.5",
    "bias_raw",
    "linear",
    "linear_max_out",
    "linear_3d",
    "conv1d",
    "conv3d_b1.5",
    "conv3d_circular",
]


def recorded_calls(case, **options):
    """Arguments of every operator that one forward and backward of ``case`` calls."""

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "bcos_kernels":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    calls = []
    inputs = [t for t in case.inputs(torch.float32) if t is not None]
    with Recorded():
        y = case(*inputs, backend="cpu", **options)
        grad(y, inputs, torch.randn_like(y))
    return calls


OF_ANY_SIZE = ("conv3x3", "b1.5", "linear_3d")
OF_THEIR_SIZE = ("grouped", "max_out", "b1", "bias_raw", "linear_max_out", "conv3d_circular")
"""Layers in which every input, output and option of the operators takes part, of one, two and three axes: ``make test``
traces the gradients of these, the first with symbolic sizes, whose equations take most of the time. ``make thorough``
traces all with symbolic sizes; the graphs of the others consist of the same parts."""


def opchecked():
    """Names, and the sizes with which gradients are traced; None without gradients."""
    for name in NAMES:
        usual = () if name in ("b1", "linear_max_out") else (pytest.mark.slow,)
        if name not in OF_ANY_SIZE:
            yield pytest.param(name, None, marks=usual)
        if name in OF_THEIR_SIZE:
            yield pytest.param(name, "static", marks=usual)
        yield pytest.param(name, "dynamic", marks=usual if name in OF_ANY_SIZE else (pytest.mark.thorough, *usual))


@pytest.mark.parametrize("name, sizes", list(opchecked()))
def test_opcheck(name, sizes):
    """Schema, autograd registration, fake tensors and AOT dispatch, with and without inputs that require gradients."""
    options = {"b": torch.tensor(1.5)} if name == "grouped" else {}
    calls = recorded_calls(IDS[name], **options)
    assert len(calls) == 2
    for op, args in calls:
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        if sizes:  # n, l and winner are the forward's own, and no arguments to differentiate
            names = ("grad", "x", "weight", "bias", "tensor_b")
            args = [
                a.requires_grad_() if isinstance(a, torch.Tensor) and p.name in names else a
                for a, p in zip(args, op._schema.arguments, strict=True)
            ]
        # The second derivatives of convolution and maximum fail with symbolic sizes in torch before 2.13.
        traced = "static" if sizes and torch.__version__ < "2.13" else sizes or "dynamic"
        checks = "test_schema", "test_autograd_registration", "test_faketensor", f"test_aot_dispatch_{traced}"
        torch.library.opcheck(op, tuple(args), test_utils=checks)


@pytest.mark.parametrize("name", thinned(NAMES, lambda name: name in ("conv3x3", "linear")))
@pytest.mark.parametrize("strided", [False, True])
def test_fullgraph(name, strided):
    """torch.compile without a graph break, forward and backward, also with inputs and gradients of odd strides."""
    case = IDS[name]
    torch._dynamo.reset()
    inputs = [t for t in case.inputs(torch.float32) if t is not None]

    def layer(x, *rest):
        x = torch.cat([x, x], -1)[..., ::2] if strided else x
        return case(x * 1.5, *rest) * 2

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, again = layer(*inputs), compiled(*inputs)
    assert error(again, y) < 1e-6
    upward = torch.randn_like(y).transpose(0, -1).contiguous().transpose(0, -1)
    for mine, yours in zip(grad(again, inputs, upward), grad(y, inputs, upward), strict=True):
        assert error(mine, yours) < 1e-6


@pytest.mark.slow
def test_inductor_and_dynamic_shapes():
    torch._dynamo.reset()
    case = IDS["conv3x3"]
    x, weight, _ = case.inputs(torch.float32, channels_last=True)
    compiled = torch.compile(lambda x, w: case(torch.relu(x), w).square(), fullgraph=True, dynamic=True)
    for batch in (2, 3, 5):
        sample = torch.randn(batch, *x.shape[1:]).requires_grad_()
        y = compiled(sample, weight)
        expected = case(torch.relu(sample), weight).square()
        assert error(y, expected) < 1e-6
        for mine, yours in zip(grad(y.sum(), (sample, weight)), grad(expected.sum(), (sample, weight)), strict=True):
            assert error(mine, yours) < 1e-5


def test_compiled_late_mode_still_reads_its_state():
    """A compiled backward would keep the mode of its first run; the call breaks the graph instead."""
    torch._dynamo.reset()
    case, state = IDS["conv3x3"], {"fixed_weights": False}
    x, weight, _ = case.inputs(torch.float64)
    compiled = torch.compile(lambda x, w: case(x * 2, w, detach=state), backend="aot_eager")
    for fixed in (False, True, False):
        y = compiled(x, weight)
        state["fixed_weights"] = fixed
        expected = grad(case.naive(x * 2, weight, detach=fixed).sum(), (x, weight))
        for mine, yours in zip(grad(y.sum(), (x, weight)), expected, strict=True):
            assert error(mine, yours) < 1e-13
        state["fixed_weights"] = False


@pytest.mark.parametrize("name", ["conv3x3", "max_out", "linear", "conv1d", "conv3d_circular"])
def test_export(name):
    case = IDS[name]

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(case.inputs(torch.float32)[1].detach())

        def forward(self, x):
            return case(x, self.weight)

    x = case.inputs(torch.float32)[0].detach()
    layer = Layer()
    program = torch.export.export(layer, (x,))
    assert any("bcos_kernels" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name",
    ["conv3x3", "conv1x1", "depthwise", "b1", "b1.5", "max_out", "explain", "linear", "linear_b2.5", "linear_explain"],
)
def test_trap_5_autocast_dtypes_and_errors(name, dtype):
    check_autocast(IDS[name], dtype)


def test_an_accelerated_layer_is_exported_with_a_dimension_of_a_named_argument():
    layer = bk.accelerate(bcos.modules.BcosConv2d(6, 4, 3))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (torch.randn(3, 6, 5, 5),), dynamic_shapes={"in_tensor": {0: batch}})
    x = torch.randn(7, 6, 5, 5)
    assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("b", [1, 1.5, 2])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make", [lambda b: bcos.modules.BcosConv2d(6, 4, 3, b=b), lambda b: bcos.modules.BcosLinear(6, 4, b=b)]
)
def test_autocast_gives_the_references_dtype_to_inputs_in_half_precision(make, x_dtype, b):
    """As behind a plain layer: on a CPU autocast leaves squares and their sum in the dtype of x."""
    layer, x = make(b), torch.randn(2, 6, 6, 6).to(x_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = layer(x).dtype
        assert bk.accelerate(layer)(x).dtype == theirs
        layer.linear.register_forward_hook(lambda *args: None)
        assert layer(x).dtype == theirs
    own = bk.BcosLinear(6, 4, b=b)
    with torch.autocast("cpu", torch.bfloat16):
        fused = own(x).dtype
        own.linear.register_forward_hook(lambda *args: None)
        assert own(x).dtype == fused == theirs


@pytest.mark.parametrize("size", [1e-4, 1e-6])
@pytest.mark.parametrize("b", [1.5, 2])
@pytest.mark.parametrize("name", ["linear", "linear_3d"])
def test_small_rows_beside_a_bias_under_autocast_to_fp16(name, b, size):
    """The reference forms their norm of x in fp32, and a gradient of x that would overflow in fp16."""
    case, budget, lost = IDS[name], Budget(), 0
    for seed in range(5):
        x, weight, _ = case.inputs(torch.float32, seed)
        bias, found = torch.randn(len(weight), generator=torch.Generator().manual_seed(seed)), []
        upward = torch.randn(case(x, weight).shape, generator=torch.Generator().manual_seed(seed + 99))
        for layer, to in ((case, torch.float32), (case.naive, torch.float32), (case.naive, torch.float64)):
            named = [t.detach().to(to).requires_grad_() for t in (x * size, weight, bias)]
            with torch.autocast("cpu", torch.float16, enabled=to == torch.float32):
                y = layer(*named, b=b)
            assert y.dtype == to
            found.append((y, *grad(y, named, upward.to(to))))
        for what, mine, yours, truth in zip(("y", "dx", "dw", "dbias"), *found, strict=True):
            finite = yours.isfinite()
            lost += (finite & ~mine.isfinite()).sum()
            budget.add(what, *(torch.where(finite, t, 0) for t in (mine, yours, truth)), torch.float16)
    assert lost == 0
    budget.check()


@pytest.mark.parametrize("b, norm_eps, biased, x_dtype, computed", [
    (2, (0.0, 1e-12), True, torch.float32, torch.float32),
    (1.5, (0.0, 1e-12), True, torch.float32, torch.float32),
    (2, (0.0, 1e-12), False, torch.float32, torch.float16),
    (2, (1e-6, 0.0), True, torch.float32, torch.float16),
    (1, (0.0, 1e-12), True, torch.float32, torch.float16),
    (2, (0.0, 1e-12), True, torch.float16, torch.float16),
])  # fmt: skip
def test_what_autocast_to_fp16_rounds_on_a_gpu(b, norm_eps, biased, x_dtype, computed):
    """Beside a bias rows may be so small that the norm needs x in fp32, as the reference forms it."""
    from torch._subclasses import FakeTensorMode

    options = 1, True, False, norm_eps, 1e-6, True, None, "triton"
    was = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with FakeTensorMode():  # autocast's own context refuses a GPU that is not there
        x, weight = torch.empty(4, 8, device="cuda", dtype=x_dtype), torch.empty(6, 8, device="cuda")
        bias = torch.empty(6, device="cuda") if biased else None
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.float16)
        try:
            found = plan(x, weight, bias, b, False, (), options)
        finally:
            torch.set_autocast_enabled("cuda", was[0])
            torch.set_autocast_dtype("cuda", was[1])
    assert found.call.dtype == computed and found.casts[0] == computed
    assert found.call.out_dtype == (torch.float16 if b == 1 else torch.float32)


def test_autocast_low_precision_output_and_backward_inside():
    case = IDS["conv3x3"]
    x, weight, _ = case.inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = case(x, weight, out_dtype=torch.bfloat16)
        assert y.dtype == torch.bfloat16
        inside = grad(y.float().sum(), (x, weight), create_graph=True)
        wide = case(x, weight)
        wide_inside = grad(wide.sum(), (x, weight), retain_graph=True)
    for mine, yours in zip(inside, grad(case.naive(x, weight).sum(), (x, weight)), strict=True):
        assert error(mine, yours) < 3e-2
    for mine, yours in zip(wide_inside, grad(wide.sum(), (x, weight)), strict=True):
        assert torch.equal(mine, yours)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    case = IDS["b1.5"]
    x, weight, _ = case.inputs(torch.float64)
    y = checkpoint(case, x, weight, use_reentrant=reentrant)
    for mine, yours in zip(grad_of(y, x, weight), grad_of(case(x, weight), x, weight), strict=True):
        assert torch.equal(mine, yours)


def grad_of(y, *inputs):
    for t in inputs:
        t.grad = None
    y.square().sum().backward()
    return [t.grad for t in inputs]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_runs_under_fake_tensors(device):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        x, w = torch.empty(2, 6, 9, 9), torch.empty(4, 6, 3, 3)
        assert bk.functional.bcos_conv2d(x, w, padding=1).shape == (2, 4, 9, 9)
    if device == "meta":
        x, w = torch.empty(2, 6, 9, 9, device=device), torch.empty(4, 6, 3, 3, device=device)
        assert bk.functional.bcos_conv2d(x, w, padding=1).shape == (2, 4, 9, 9)


@pytest.mark.slow
def test_a_program_of_aotinductor(tmp_path):
    """Its programs give operators None in the place of an empty list, and in torch 2.11 another dtype."""
    model = torch.nn.Sequential(bk.BcosConv2d(6, 4, 3, padding=1, b=1.5), torch.nn.Flatten(2), bk.BcosLinear(16, 5))
    x = torch.rand(2, 6, 4, 4)
    program = torch.export.export(model.eval(), (x,))
    operators = [node for node in program.graph.nodes if "bcos_kernels" in str(node.target)]
    assert operators and not any(arg == [] or isinstance(arg, torch.dtype) for node in operators for arg in node.args)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    assert torch.allclose(torch._inductor.aoti_load_package(package)(x), model(x), rtol=1e-5)


def test_calls_are_made_with_keywords_where_dynamo_traces(monkeypatch):
    """Dynamo of torch 2.11 hands positional arguments to the wrong fields, which ended every compilation."""

    def made(op):
        def of_keywords(**fields):
            seen.append(op)
            return op.Call(**fields)

        return of_keywords

    seen = []
    ops = (transform, norm, dynamic_alignment)
    for op in ops:
        monkeypatch.setattr(op.functional, "Call", made(op))
    sizes = torch.rand(3, 6, 7, 11), torch.rand(13, 6, 3, 5)  # of no other test, whose plans are kept
    bk.functional.bcos_conv2d(*sizes)
    bk.functional.norm(sizes[0], torch.ones(6), over="batch")
    bk.functional.dynamic_alignment(sizes[0], torch.rand(5, 6, 3, 3), torch.rand(6 * 9 * 2, 5, 1, 1))
    assert seen == [*ops]


@pytest.mark.parametrize(
    "call, most",
    [
        (of_shapes((2, 8, 5, 5), (4, 8, 3, 3)), [2**31]),
        (norm.Call(norm.Spec(), "cuda", (2, 8, 5, 4)), [2**31]),
        (dynamic_alignment.Call(dynamic_alignment.Spec((3, 3)), "cuda", (2, 8, 5, 5), 4, 6), []),
    ],
)
def test_dynamo_traces_what_is_too_large(call, most):
    """Until Python 3.12 a cached property takes a lock, at which Dynamo breaks the graph."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: (x + 1, call.unserved(*most)), fullgraph=True, backend="eager")
    assert compiled(torch.ones(2))[1] == []
