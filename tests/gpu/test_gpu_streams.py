"""CUDA graphs, streams other than the default one, and devices other than the current one."""

import copy

import pytest
import torch
from cases import CANDIDATES, error
from on_gpu import SMALL, run, tensors

import bcos_kernels as bk


def assert_agree(found, expected, candidate: str = "vendor") -> None:
    """All bits of our own kernels; the vendor's libraries may take another algorithm."""
    for mine, yours in zip(found, expected, strict=True):
        rounding = 4 * torch.finfo(yours.dtype).eps if candidate in ("vendor", "graph") else 0.0
        assert error(mine, yours) <= rounding


def warmed_up(call) -> None:
    """Runs ``call`` on another stream, as a capture needs it: compilers and libraries start there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize("candidate", (*CANDIDATES, "tma", "tma-vendor"))
@pytest.mark.parametrize("name", ["conv3x3", "strided_b1.5", "depthwise", "max_out", "linear"])
def test_graph_replays_forward_and_backward_with_new_data(name, candidate, force):
    """A sync or an autotune would kill the capture; a value read by the host would stay that of the capture."""
    force(candidate)
    case = SMALL[name]
    x, weight = tensors(case)
    upward = torch.randn_like(case(x, weight))
    warmed_up(lambda: run(case, x, weight, upward))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case, x, weight, upward)
    for seed in (1, 2):
        fresh = tensors(case, seed=seed)
        with torch.no_grad():
            for mine, new in zip((x, weight), fresh, strict=True):
                mine.copy_(new)
            upward.normal_()
        graph.replay()
        assert_agree(captured, run(case, *fresh, upward), candidate)


def test_graph_reads_a_tensor_exponent_at_replay():
    case = SMALL["conv1x1"]
    x, weight = tensors(case, torch.float32)
    b = torch.tensor(1.5, device="cuda", requires_grad=True)

    def call():
        y = case(x, weight, b=b)
        return y.detach(), *torch.autograd.grad(y, (x, weight, b), torch.ones_like(y))

    warmed_up(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for value in (1.25, 2.0, 2.5):
        with torch.no_grad():
            b.fill_(value)
        graph.replay()
        assert_agree(captured, call())


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_graphed_callable_trains_with_new_data(name):
    module = bk.BcosConv2d(32, 48, 3, padding=1) if name == "conv" else bk.BcosLinear(96, 80)
    shape = (4, 32, 15, 15) if name == "conv" else (70, 96)
    module = module.to("cuda", torch.bfloat16)
    eager = copy.deepcopy(module)
    sample = torch.randn(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(module, (sample,))
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.bfloat16, device="cuda")
        results = []
        for layer in (graphed, eager):
            layer.zero_grad()
            mine = x.clone().requires_grad_()
            y = layer(mine)
            y.float().square().sum().backward()
            results.append((y.detach().clone(), mine.grad, *(p.grad.clone() for p in layer.parameters())))
        assert_agree(*results)


@pytest.mark.parametrize("candidate", (*CANDIDATES, "tma", "tma-vendor"))
@pytest.mark.parametrize("name", ["conv3x3", "grouped", "depthwise", "linear"])
def test_delayed_producer_on_a_side_stream(name, candidate, force):
    """A kernel on the default stream would read x before it is there."""
    force(candidate)
    case = SMALL[name]
    x, weight = tensors(case)
    upward = torch.randn_like(case(x, weight))
    expected = run(case, x, weight, upward)
    late = torch.full_like(x, float("nan"))
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # cycles, a tenth of a second
        with torch.no_grad():
            late.copy_(x)
        found = run(case, late.requires_grad_(), weight, upward)
    side.synchronize()
    assert_agree(found, expected, candidate)


@pytest.mark.parametrize("candidate", (*CANDIDATES, "tma", "tma-vendor"))
@pytest.mark.parametrize("name", ["conv3x3", "max_out", "linear"])
def test_two_streams_at_once(name, candidate, force):
    """Memory that is kept from call to call would be written by one stream while the other reads it."""
    force(candidate)
    case = SMALL[name]
    inputs = [tensors(case, seed=seed) for seed in (1, 2)]
    expected, found = [run(case, *each) for each in inputs], ([], [])
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(20):
        for stream, each, kept in zip(streams, inputs, found, strict=True):
            with torch.cuda.stream(stream):
                kept.append(run(case, *each))
    torch.cuda.synchronize()
    for kept, true in zip(found, expected, strict=True):
        for each in kept:
            assert_agree(each, true, candidate)


@pytest.mark.parametrize("name", ["conv3x3", "depthwise", "max_out", "linear"])
def test_tensors_of_another_device_than_the_current_one(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs, there is one")
    case = SMALL[name]
    inputs = tensors(case)
    expected = run(case, *inputs)
    others = [t.detach().to("cuda:1").requires_grad_() for t in inputs]
    with torch.cuda.device(0):
        found = run(case, *others)
    assert all(t.device == torch.device("cuda:1") for t in found)
    assert_agree([t.to("cuda:0") for t in found], expected)
