"""torch.compile on a GPU, tf32, and what a stack of layers keeps for its backward."""

import pytest
import torch
from cases import Budget, error
from on_gpu import SMALL, exact, run, tensors
from torch.autograd import grad

import bcos_kernels as bk
from bcos_kernels.cli.bench.devices import Gpu
from bcos_kernels.cli.measure import saved_bytes

NAMES = ["conv3x3", "strided_b1.5", "depthwise", "max_out", "linear"]


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_without_a_graph_break(name, channels_last):
    """fullgraph with strided inputs and gradients: the compiler may hand over other strides than the program has."""
    torch._dynamo.reset()
    case = SMALL[name]
    x, weight = tensors(case, torch.float32, channels_last=channels_last)

    def layer(x, weight):
        x = torch.cat([x, x], -1)[..., ::2] * 1.5
        return case(x, weight * 0.5) * 2

    y, again = layer(x, weight), torch.compile(layer, fullgraph=True)(x, weight)
    assert error(again, y) < 1e-6
    upward = torch.randn_like(y).transpose(0, -1).contiguous().transpose(0, -1)
    for mine, yours in zip(grad(again, (x, weight), upward), grad(y, (x, weight), upward), strict=True):
        assert error(mine, yours) < 1e-5


def test_compiled_gradient_of_torch_func():
    torch._dynamo.reset()
    case = SMALL["conv3x3"]
    x, weight = (t.detach() for t in tensors(case, torch.float32))

    def gradients(x, weight):
        return torch.func.grad(lambda x, w: case(x, w).sum(), argnums=(0, 1))(x, weight)

    expected = run(case, x.requires_grad_(), weight.requires_grad_())[1:]
    for found in (gradients, torch.compile(gradients, fullgraph=True)):
        for mine, yours in zip(found(x.detach(), weight.detach()), expected, strict=True):
            assert error(mine, yours) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_compiled_under_autocast(dtype):
    torch._dynamo.reset()
    case = SMALL["conv3x3"]
    x, weight = tensors(case, torch.float32)

    def layer(x, weight):
        with torch.autocast("cuda", dtype):
            return case(x, weight)

    y, again = layer(x, weight), torch.compile(layer, fullgraph=True)(x, weight)
    assert again.dtype == y.dtype == torch.float32 and torch.equal(again, y)
    for mine, yours in zip(grad(again.sum(), (x, weight)), grad(y.sum(), (x, weight)), strict=True):
        assert torch.equal(mine, yours)


@pytest.mark.parametrize("candidate", ["one-pass", "semi", "vendor"])
@pytest.mark.parametrize("name", ["conv3x3", "linear"])
def test_tf32_only_where_it_is_allowed(name, candidate, force):
    """The error grows to tf32's where the user allows it, and nowhere else."""
    force(candidate)
    case = SMALL[name]
    inputs = tensors(case, torch.float32)
    truth = exact(case, *inputs)
    errors = {}
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        errors[allowed] = [error(a.cpu(), b) for a, b in zip(run(case, *inputs), truth, strict=True)]
    assert max(errors[False]) < 1e-5
    assert 5e-5 < max(errors[True]) < 3e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("scale", [1e2, 1e-2])
@pytest.mark.parametrize("name", SMALL)
def test_scaled_inputs_of_many_steps(name, scale, dtype):
    """Layers as they are chosen, large enough for every loop to turn, against the eager formula on the GPU."""
    case, budget = SMALL[name], Budget()
    for seed in range(3):
        x, weight = tensors(case, dtype, seed)
        x = (scale * x.detach()).requires_grad_()
        upward = torch.randn_like(case(x, weight))
        y = case.naive(x, weight)
        theirs = y.detach(), *grad(y, (x, weight), upward)
        truth = exact(case, x, weight, upward)
        for what, mine, yours, true in zip(("y", "dx", "dw"), run(case, x, weight, upward), theirs, truth, strict=True):
            size = true.norm()
            budget.add(what, mine.cpu().double() / size, yours.cpu().double() / size, true / size, dtype)
    budget.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["conv", "linear", "depthwise"])
def test_saved_bytes_are_those_of_a_plain_stack(kind, dtype):
    """Six layers of b = 2: x, w, y, which is the next one's x, and one norm for each pixel; depthwise not even that."""
    shape = (512, 256) if kind == "linear" else (4, 256, 14, 14)
    groups = 256 if kind == "depthwise" else 1
    filters = (256, 256) if kind == "linear" else (256, 256 // groups, 3, 3)
    x = torch.randn(shape, device="cuda", dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    weights = [torch.randn(filters, device="cuda", dtype=dtype, requires_grad=True) for _ in range(6)]
    functional, options = torch.nn.functional, {} if kind == "linear" else {"padding": 1, "groups": groups}
    plain, ours = (functional.linear, bk.functional.bcos_linear) if kind == "linear" else (
        functional.conv2d, bk.functional.bcos_conv2d
    )  # fmt: skip

    def kept(layer) -> int:
        excluded = list(weights)

        def stack():
            y = x.clone().requires_grad_()
            for weight in weights:
                y = layer(y, weight, **options)
            excluded.append(y)  # alive without autograd as well
            return y

        return saved_bytes(stack, excluded)

    assert kept(ours) <= 1.05 * kept(plain)


def test_the_peak_of_a_call_is_the_same_each_time(monkeypatch):
    """What autograd's thread still holds of the call before is freed within this one: a peak would be too small."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # which a Gpu sets
    norm = torch.nn.BatchNorm2d(64).cuda()
    x = torch.randn(16, 64, 56, 56, device="cuda", requires_grad=True)

    def call():
        y = norm(x)
        return y.detach(), *grad(y, x, torch.ones_like(y))

    call()
    device = Gpu()
    assert len({device.peak(call) for _ in range(50)}) == 1
