"""Other GPUs, other threads, settings that change between forward and backward, and memory that runs out."""

import copy
import os
import subprocess
import sys
import threading

import pytest
import torch
from cases import Case, error
from on_gpu import SMALL, equal, exact, run, tensors
from torch import nn

import bcos_kernels as bk
from bcos_kernels.functional import bcos_conv2d, dynamic_alignment, norm


def several() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs, there is one")


def network() -> nn.Module:
    """A layer, a norm and a linear layer."""
    torch.manual_seed(0)
    layers = bk.BcosConv2d(16, 32, 3, padding=1), nn.Flatten(), bk.BcosLinear(32 * 36, 8)
    return nn.Sequential(*layers).to("cuda")


@pytest.mark.parametrize("op", ["batch norm", "norm at positions", "dynamic alignment"])
def test_other_ops_on_another_device_than_the_current_one(op):
    several()
    given = [torch.randn(shape, device="cuda") for shape in ((2, 6, 9, 9), (6,), (8, 6, 3, 3), (54 * 4, 8, 1, 1))]

    def results(where: str) -> list[torch.Tensor]:
        x, scale, projection, weight = (t.detach().to(where).requires_grad_() for t in given)
        if op == "dynamic alignment":
            used, y = (x, projection, weight), dynamic_alignment(x, projection, weight, padding=1)
        else:
            used, y = (x, scale), norm(x, scale, over="batch" if op == "batch norm" else "position")
        return [y.detach(), *torch.autograd.grad(y, used, torch.ones_like(y))]

    with torch.cuda.device(0):
        expected, found = results("cuda:0"), results("cuda:1")
    assert all(t.device == torch.device("cuda:1") for t in found)
    for mine, true in zip(found, expected, strict=True):
        assert error(mine.to("cuda:0"), true) < 1e-5


def test_a_process_that_uses_another_gpu_makes_no_context_on_the_first(backend):
    """It would take hundreds of megabytes there, of every process of a job that does not set its current GPU."""
    several()
    code = (
        "import torch, bcos_kernels as bk\n"
        "layer = bk.BcosConv2d(6, 16, 3, padding=1).to('cuda:1')\n"
        "x = torch.rand(2, 6, 8, 8, device='cuda:1', requires_grad=True)\n"
        "bk.functional.norm(layer(x), over='group', groups=2).sum().backward()\n"
        "print(bk.report(layer).layers[0].backend, torch._C._cuda_hasPrimaryContext(0))\n"
    )
    environment = {**os.environ, "BCOS_KERNELS_BACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [backend, "False"]


def test_replicas_of_data_parallel():
    """Threads of one process, each with a GPU."""
    several()
    net, x = network(), torch.rand(6, 16, 6, 6, device="cuda")
    alone, split = copy.deepcopy(net), nn.DataParallel(net, device_ids=[0, 1])
    for module in (alone, split):
        for _ in range(2):
            module.zero_grad()
            module(x).square().sum().backward()
    for mine, true in zip(net.parameters(), alone.parameters(), strict=True):
        assert error(mine.grad, true.grad) < 1e-5


@pytest.mark.parametrize("what", ["weight", "bias", "b"])
def test_a_tensor_that_lies_elsewhere_is_named(what):
    given = {"weight": torch.rand(4, 3, 3, 3), "bias": torch.rand(4), "b": torch.tensor(2.0)}
    there = {name: t if name == what else t.cuda() for name, t in given.items()}
    with pytest.raises(ValueError, match=f"{what} is on cpu, x on cuda:0: both must be on one device"):
        bcos_conv2d(torch.rand(1, 3, 5, 5, device="cuda"), **there)


def test_threads_that_share_a_layer():
    """Eight of them, each on a stream of its own, over and over: what a layer remembers serves each call its own."""
    net = network()
    images = [torch.rand(batch, 16, 6, 6, device="cuda") for batch in range(1, 9)]

    def results(x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        y = net(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (x, *net.parameters()))]

    expected = [results(x) for x in images]
    torch.cuda.synchronize()
    wrong: list[str] = []

    def work(x: torch.Tensor, true: list[torch.Tensor]) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                try:
                    found = results(x)
                    torch.cuda.current_stream().synchronize()
                    wrong.extend("differs" for mine, t in zip(found, true, strict=True) if error(mine, t) > 1e-5)
                except Exception as failure:
                    wrong.append(repr(failure))

    threads = [threading.Thread(target=work, args=each) for each in zip(images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("candidate", ["one-pass", "semi", "vendor"])
def test_tf32_that_was_allowed_in_the_forward_alone(candidate, force):
    """The backward rounds no operand then. At b = 1 nothing that the forward saved was rounded."""
    force(candidate)
    case = Case("conv3x3", (4, 64, 14, 14), (64, 64, 3, 3), {"padding": 1, "b": 1})
    x, weight = tensors(case, torch.float32)
    torch.backends.cudnn.allow_tf32 = True
    y = case(x, weight)
    torch.backends.cudnn.allow_tf32 = False
    truth = exact(case, x, weight)
    found = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    rounded = error(y.detach().cpu(), truth[0])
    assert rounded < 1e-2 and (rounded > 5e-5 or candidate == "vendor")  # cuDNN may round nothing all the same
    for mine, true in zip(found, truth[1:], strict=True):
        assert error(mine.cpu(), true) < 3e-5


@pytest.mark.parametrize("name", ["conv3x3", "depthwise", "linear"])
def test_captured_by_the_compiler(name):
    """mode="reduce-overhead" records CUDA graphs of the forward and of the backward, with memory of its own."""
    torch._dynamo.reset()
    case = SMALL[name]
    layer = torch.compile(lambda x, weight: case(x * 1.5, weight) * 2, mode="reduce-overhead", fullgraph=True)
    for seed in range(5):
        x, weight = tensors(case, torch.float32, seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        y = layer(x, weight)
        upward = torch.randn_like(y)
        found = y.detach().clone(), *(g.clone() for g in torch.autograd.grad(y, (x, weight), upward))
        true = case(x * 1.5, weight) * 2
        expected = true.detach(), *torch.autograd.grad(true, (x, weight), upward)
        for mine, yours in zip(found, expected, strict=True):
            assert error(mine, yours) < 1e-5


def test_a_scaler_skips_the_step_whose_gradients_overflow():
    net, x = network(), torch.rand(4, 16, 6, 6, device="cuda")
    optimizer = torch.optim.SGD(net.parameters(), 1e-6)
    changed = []
    for scale in (2.0**127, 1.0):
        scaler = torch.amp.GradScaler("cuda", init_scale=scale)
        before = [p.detach().clone() for p in net.parameters()]
        with torch.autocast("cuda", torch.float16):
            loss = 1e6 * net(x).float().square().sum()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        changed.append(not equal(tuple(p.detach() for p in net.parameters()), tuple(before)))
    assert changed == [False, True]


@pytest.mark.parametrize("name", ["conv3x3", "depthwise", "linear"])
def test_a_backward_that_runs_out_of_memory_writes_no_gradient(name, room):
    """And the next one, with memory, is right."""
    room(2)
    case = SMALL[name]
    expected = run(case, *tensors(case))
    x, weight = tensors(case)
    y = case(x, weight)
    upward = torch.ones_like(y)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    held = []
    try:
        torch.cuda.set_per_process_memory_fraction(
            torch.cuda.memory_reserved() / torch.cuda.get_device_properties().total_memory
        )
        with pytest.raises(torch.OutOfMemoryError):
            while True:  # what is free within what is reserved
                held.append(torch.empty(512, device="cuda"))
        with pytest.raises(torch.OutOfMemoryError):
            torch.autograd.backward(y, upward)
        assert x.grad is None and weight.grad is None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        held.clear()
    assert equal(run(case, *tensors(case)), expected)
