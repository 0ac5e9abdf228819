"""What reaches the driver of a GPU: a kernel that was kept is started as Triton itself starts it; and how many do."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from triton.compiler.compiler import LazyDict
from triton.tools.tensor_descriptor import TensorDescriptor

from bcos_kernels.core import choice, plans
from bcos_kernels.gpu import aot, launch
from bcos_kernels.gpu.launches import launches
from bcos_kernels.norm import NORM as NORMS
from bcos_kernels.norm.call import Call as NormCall
from bcos_kernels.norm.spec import Spec as NormSpec
from bcos_kernels.transform import TRANSFORM
from bcos_kernels.transform.call import of_shapes
from benchmarks import launches as counted

pytestmark = pytest.mark.slow

CONVOLUTION = of_shapes((2, 32, 9, 9), (32, 32, 3, 3), padding=(1, 1))
LINEAR = of_shapes((512, 64), (128, 64))
STRIDED = of_shapes((2, 64, 8, 16), (128, 64, 1, 1), stride=(2, 2))
NORM = NormCall(NormSpec("batch", 1, False, 1e-5, False, torch.bfloat16), "cuda", (2, 32, 9, 9), torch.bfloat16, True,
                channels_last=True, arch="sm_90")  # fmt: skip
CASES = {
    "convolution": (CONVOLUTION, "one-pass"),
    "convolution in fp64": (of_shapes((2, 32, 9, 9), (32, 32, 3, 3), dtype=torch.float64), "vendor"),
    "b a tensor": (of_shapes((2, 32, 9, 9), (32, 32, 3, 3), b=None), "semi"),
    "linear, by TMA": (LINEAR, "tma"),
    "with a stride, by TMA": (STRIDED, "tma-vendor"),
    "norm": (NORM, "kernels"),
}


class Recording(aot.Driver):
    """A driver that keeps what it is told to start, and whose kernel that is."""

    def __init__(self):
        super().__init__("sm_90")
        self.started = []

    def get_current_device(self):
        return f"{self.arch} of {id(self)}"  # Triton and launch keep kernels by device

    def start(self, metadata, *arguments):
        self.started.append((metadata, arguments))


@pytest.fixture
def driver():
    driver = Recording()
    with aot.active(driver):
        yield driver


def memory(argument, offset: int = 0):
    """The argument with memory of its own, which begins ``offset`` values behind a multiple of 16 bytes."""
    if isinstance(argument, TensorDescriptor):
        base = torch.empty(argument.base.shape, dtype=argument.base.dtype)
        return TensorDescriptor(base, argument.shape, argument.strides, argument.block_shape)
    return torch.empty(64, dtype=argument.dtype)[offset:] if isinstance(argument, Tensor) else argument


def by_triton(driver, started, arguments):
    started.kernel[started.grid](
        *arguments, **started.constants, num_warps=started.warps, num_stages=started.stages, enable_fp_fusion=True
    )
    return driver.started.pop()


def by_us(driver, started, arguments):
    options = {"warps": started.warps, "stages": started.stages, **started.constants}
    launch.launch(started.kernel, started.grid, *arguments, **options)
    return driver.started.pop()


def same(one, other) -> bool:
    """Whether the driver was told the same: the same tensors, not equal ones, and the same facts for a profiler."""
    (kernel, first), (other_kernel, second) = one, other
    return kernel is other_kernel and all(
        a is b or (type(a) is type(b) and not isinstance(a, (Tensor, TensorDescriptor)) and _value(a) == _value(b))
        for a, b in zip(first, second, strict=True)
    )


def _value(argument):
    return argument.get() if isinstance(argument, LazyDict) else argument


@pytest.mark.parametrize("direction", ["forward", "training"])
@pytest.mark.parametrize("what", CASES)
def test_kept_kernels_are_started_as_triton_starts_them(what, direction, driver):
    call, candidate = CASES[what]
    found = launches(NORMS if call is NORM else TRANSFORM, call, direction, candidate)
    for started in found:
        arguments = tuple(map(memory, started.arguments))
        before = len(launch._starts)
        first, again = (by_us(driver, started, arguments) for _ in range(2))
        assert len(launch._starts) == before + 1  # kept by the first, found by the second
        assert same(again, first) and same(again, by_triton(driver, started, arguments))


def test_another_specialisation_is_another_kernel(driver):
    """Of a tensor in the midst of another, of sizes 1, 16 and 17 and above 2³¹, of absent and of other tensors; and of
    other constants, in any order."""
    started = launches(TRANSFORM, CONVOLUTION, "forward", "one-pass")[1]
    x, _, out, *_ = map(memory, started.arguments)
    variants = [
        (tensor, v, out, rows, channels, eps, 0.0)
        for tensor in (x, memory(x, offset=3), x.float())
        for v in (None, x)
        for rows, channels in ((1, 1), (16, 16), (17, 32), (1 << 33, 32))
        for eps in (1e-6, 1.0)
    ]
    others = {**started.constants, "ROOT": not started.constants["ROOT"]}
    turned = dict(reversed(others.items()))
    kernels = set()
    for constants in (started.constants, others, started.constants, turned):
        for arguments in variants[:: 1 if constants is started.constants else 24]:
            ours = by_us(driver, started._replace(constants=constants), arguments)
            assert same(ours, by_triton(driver, started._replace(constants=constants), arguments))
            kernels.add(id(ours[0]))
    assert len(kernels) == len(variants) // 2 + 2  # a float is no part of what a kernel is compiled for


def test_no_more_kernels_are_kept_than_plans(driver, monkeypatch):
    monkeypatch.setattr(plans, "MOST", 3)
    started = launches(TRANSFORM, CONVOLUTION, "forward", "one-pass")[1]
    x, v, out, _, *rest = map(memory, started.arguments)
    for rows in range(2, 8):
        by_us(driver, started, (x, v, out, rows, *rest))
        assert 0 < len(launch._starts) <= 3


POINTWISE = of_shapes((256, 256, 56, 56), (64, 256, 1, 1))
COUNTED = {
    "3x3, stride 2": of_shapes((256, 128, 56, 56), (128, 128, 3, 3), stride=(2, 2), padding=(1, 1)),
    "1x1": POINTWISE,
    "1x1, stride 2": of_shapes((256, 256, 56, 56), (512, 256, 1, 1), stride=(2, 2)),
    "32 groups": of_shapes((256, 128, 56, 56), (128, 4, 3, 3), padding=(1, 1), groups=32),
    "linear": of_shapes((50176, 384), (1536, 384)),
}


@pytest.mark.parametrize("direction", ["forward", "training"])
@pytest.mark.parametrize("what", COUNTED)
def test_what_a_call_starts_is_counted(what, direction):
    """Every launch, and the products of cuDNN, up to two in a backward; one image starts what a batch does."""
    call = COUNTED[what]
    found = counted.started(TRANSFORM, call, direction, times=1)
    chosen = choice.predicted(TRANSFORM, "triton", call, direction)
    expected = len(launches(TRANSFORM, call, direction, chosen.candidate.name, chosen.tile))
    products = {"vendor": {"forward": 1, "training": 2}[direction], "tma-vendor": 1}.get(found.candidate, 0)
    assert (found.candidate, found.kernels) == (chosen.candidate.name, expected + products) and found.seconds > 0


def test_the_table_of_what_a_step_starts(monkeypatch, capsys):
    """Calls count as often as the network makes them, and are measured once."""
    made, asked = [SimpleNamespace(kind=k, call=call) for k, call in (("layer", POINTWISE), ("norm", NORM))] * 2, []
    monkeypatch.setattr(counted, "calls_of", lambda model, images, arch: asked.append(images) or made)
    assert counted.main(["--models", "vgg11", "--images", "64"]) == 0
    layers, norms = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("VGG-11"))
    assert asked == [64] and layers[1:5] == ["layers", "2", "2.0", "3.0"] and norms[1:5] == ["norms", "2", "3.0", "3.0"]
    with pytest.raises(SystemExit, match="2"):
        counted.main(["--images", "0"])
