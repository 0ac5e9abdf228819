"""What the GPU backends say of calls that they do not serve, and how one is chosen: without GPU and stand-ins."""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import bcos_kernels
from bcos_kernels import norm
from bcos_kernels.core import choice, device, extension
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.gpu import cuda as loaded
from bcos_kernels.gpu import triton as installed
from bcos_kernels.transform import TRANSFORM, Spec, cuda, traffic, triton
from bcos_kernels.transform.call import of_shapes
from bcos_kernels.transform.triton import tma_tiles

OF_TRITON, OF_CUDA = (
    {c.name for c in TRANSFORM.candidates_of(backend) if not c.name.startswith("sampled-")}
    for backend in ("triton", "cuda")
)
"""Without those of 1×1 convolutions with a stride; see ``gpu_kernels/test_kernels_sampled.py``."""
CONV = of_shapes((2, 8, 5, 5), (4, 8, 3, 3), padding=(1, 1))
SIZES = {"x_shape": (256, 64, 56, 56), "weight_shape": (64, 64, 3, 3)}
LAYER = {**SIZES, "padding": (1, 1)}
NORM = norm.Call(norm.Spec(), "cuda", (2, 8, 5, 4))
BOTH = "cuda,triton"
IN_COMPLEX = {"dtype": torch.complex64, "weight_dtype": torch.complex64}
OTHER_DTYPE = "complex64 is not one of torch.float64, torch.float32, torch.float16, torch.bfloat16"
OTHER_DEVICE = ({"device": "cpu"}, "device is 'cpu', the CUDA kernels run on 'cuda'")


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(device, "architecture", lambda index=None: "sm_90")


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"device": "cpu"}, "device is 'cpu', the Triton kernels run on 'cuda', or on 'cpu' in the interpreter"),
        ({"device": "meta"}, "device is 'meta', the Triton kernels run on 'cuda'"),
        (IN_COMPLEX, OTHER_DTYPE),
        ({"weight_dtype": torch.float16}, "weight dtype torch.float16 does not go with input dtype torch.bfloat16"),
        ({"spec": replace(CONV.spec, max_out=256)}, "max_out=256 is above 255"),
        ({"x_shape": (2**20, 8, 64, 64)}, "above 2147352576, the largest index"),
        ({"spec": Spec(), "x_shape": (2**31 - 1, 8), "weight_shape": (4, 8)}, "are above 2147352576"),
    ],
)
def test_reasons(hopper, changed, reason):
    assert triton.BACKEND.why_not(CONV) == []
    (found,) = triton.BACKEND.why_not(replace(CONV, **changed))
    assert reason in found


@pytest.mark.parametrize("arch, served", [("sm_75", False), ("sm_80", True), ("sm_120", True), ("gfx942", True)])
def test_architectures(hopper, arch, served):
    """Of the GPU where the tensors lie, which need not be the current one."""
    found = triton.BACKEND.why_not(replace(CONV, arch=arch))
    assert found == ([] if served else [f"the GPU's architecture is {arch}, the Triton kernels need sm_80 or later"])


def test_fp64_has_the_products_of_the_vendor_alone():
    for stride, names in (((1, 1), {"vendor"}), ((2, 2), {"vendor", "sampled-vendor"})):
        call = of_shapes((2, 8, 6, 6), (4, 8, 1, 1), dtype=torch.float64, stride=stride)
        for direction in DIRECTIONS:
            assert {candidate.name for candidate, _ in choice.ways(TRANSFORM, BOTH, call, direction)} == names


def test_the_vendor_alone_trains_linear_layers_with_a_bias():
    usual = {"x_shape": (256, 64), "weight_shape": (64, 64), "bias": True}
    call = of_shapes(**usual)
    assert serving(BOTH, call, "training") == {"vendor"} < serving(BOTH, call, "explanation")
    assert serving(BOTH, call.of_backward((True, True, False, False)), "training") == {"vendor"}
    for changed in ({"bias": False}, {"norm_eps": (1e-6, 0.0)}, {"b": 1.0}, {"detach": True}):
        assert {"vendor"} < serving(BOTH, of_shapes(**{**usual, **changed}), "training")


def test_without_triton(hopper, monkeypatch):
    monkeypatch.setattr(installed, "INSTALLED", False)
    assert triton.BACKEND.why_not(CONV) == ["the package triton is not installed"]


def test_the_reasons_import_no_triton():
    code = (
        "import sys; from bcos_kernels.transform import TRANSFORM; from bcos_kernels.transform.call import of_shapes; "
        "TRANSFORM.reasons(of_shapes((5, 8), (4, 8))); print('triton' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


class Extension:
    """In the place of ``bcos_kernels._C`` built with CUDA."""

    def __init__(self, refusal: str = "", torch_version: str = torch.__version__, with_cuda: bool = True) -> None:
        if with_cuda:
            self.cuda = self
        self.refusal, self.torch_version = refusal, torch_version

    def build_info(self) -> dict:
        return {"torch": self.torch_version, "device": "cuda", "architectures": [800, 900]}

    def why_not(self) -> str:
        return self.refusal


@pytest.fixture
def built(monkeypatch):
    """``built(extension)`` loads it in the place of the compiled one."""

    def load(module: Extension) -> None:
        monkeypatch.setattr(bcos_kernels, "_C", module)
        monkeypatch.setitem(sys.modules, "bcos_kernels._C", module)
        kernels, absent = loaded._load()
        monkeypatch.setattr(loaded, "kernels", kernels)
        monkeypatch.setattr(loaded, "absent", absent)
        monkeypatch.setattr(loaded, "device", kernels and kernels.build_info()["device"])
        loaded._unserved_by.cache_clear()

    yield load
    loaded._unserved_by.cache_clear()


@pytest.mark.parametrize(
    "backend, call, changed, reason",
    [
        (cuda, CONV, *OTHER_DEVICE),
        (cuda, CONV, IN_COMPLEX, OTHER_DTYPE),
        (cuda, CONV, {"spec": replace(CONV.spec, max_out=256)}, "max_out=256 is above 255"),
        (cuda, CONV, {"x_shape": (2**20, 8, 64, 64)}, "above 2147483520, the largest index"),
        (norm.cuda, NORM, *OTHER_DEVICE),
        (norm.cuda, NORM, {"dtype": torch.complex64}, OTHER_DTYPE),
        (norm.cuda, NORM, {"x_shape": (2**21, 8, 64, 64)}, "positions of x are above 2147483647, the largest index"),
    ],
)
def test_reasons_of_cuda(built, backend, call, changed, reason):
    built(Extension())
    assert backend.BACKEND.why_not(call) == []
    (found,) = backend.BACKEND.why_not(replace(call, **changed))
    assert reason in found


@pytest.mark.parametrize(
    "module, reason",
    [
        (Extension(with_cuda=False), "the compiled extension was built without CUDA"),
        (Extension(torch_version="2.0.1"), f"built for torch 2.0.1, not for {torch.__version__}: build it again"),
        (
            Extension("no kernel image"),
            "for sm_80, sm_90 and cannot run on the GPU, sm_90: no kernel image",
        ),
    ],
    ids=["without CUDA", "another torch", "another architecture"],
)
def test_an_extension_that_does_not_fit_leaves_the_call_to_the_next_backend(built, hopper, module, reason):
    built(Extension())
    assert TRANSFORM.choose(CONV) == BOTH
    built(module)
    (found,) = cuda.BACKEND.why_not(CONV)
    assert reason in found
    assert TRANSFORM.choose(CONV) == "triton"
    with pytest.raises(ValueError, match="backend='cuda' cannot serve this call: "):
        TRANSFORM.choose(CONV, "cuda")


def test_no_gpu_but_that_of_the_tensors_is_asked(built, monkeypatch):
    """Of two GPUs the first, an older one, is the current one. A context on it takes memory there, for every process
    of a job that names its GPU by tensors alone.
    """
    current, asked, module = [], [], Extension()
    module.why_not = lambda: asked.append(list(current)) or ("" if current else "no kernel image")
    module.graph_why_not = lambda *_: asked.append(list(current)) or "no plan is stored"
    module.Step, module.TransformSpec = type("Step", (), {"forward": 0}), dict

    @contextmanager
    def on(index):
        current.append(index)
        yield
        current.pop()

    built(module)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(choice.tuned, "find", lambda call, direction: None)
    assert "no kernel image" in cuda.BACKEND.why_not(replace(CONV, arch="sm_75"))[0] and asked == [[]]
    call = replace(CONV, index=1, **SIZES)
    choice.choose(TRANSFORM, TRANSFORM.choose(call), call, "forward")
    assert asked[1:] == [[1], [1]]


def test_without_triton_cuda_serves_alone(built, monkeypatch):
    built(Extension())
    monkeypatch.setattr(installed, "INSTALLED", False)
    assert TRANSFORM.choose(CONV) == "cuda"
    with pytest.raises(ValueError, match=r"backend=.cuda,triton. cannot serve .*: triton: the package triton is not"):
        TRANSFORM.choose(CONV, BOTH)


def test_without_the_extension(monkeypatch):
    monkeypatch.setitem(sys.modules, "bcos_kernels._C", None)
    monkeypatch.delattr(bcos_kernels, "_C", raising=False)
    assert extension.load()[0] is None and "bcos_kernels._C cannot be imported" in loaded._load()[1]


@pytest.mark.parametrize(
    "changed, missing",
    [
        ({}, ()),
        ({"max_out": 2}, ("one-pass",)),
        ({"b": 1.5}, ("one-pass",)),
        ({"weight_shape": (64, 4, 3, 3), "groups": 16}, ("one-pass",)),
        ({"max_out": 32}, ("one-pass", "semi")),
        ({"weight_shape": (64, 1, 3, 3), "groups": 64}, ("semi",)),
        # more programs than a grid's second axis has
        ({"x_shape": (1, 2**18, 9, 9), "weight_shape": (2**18, 32, 3, 3), "groups": 2**13}, ("one-pass", "semi")),
        # a window that reaches over more than 2³¹ values of an image
        (
            {"x_shape": (1, 2**12, 70, 2**14), "weight_shape": (64, 2**12, 3, 3), "dilation": (32, 32)},
            ("one-pass", "semi"),
        ),
    ],
)
def test_candidates_of_triton(changed, missing):
    call = of_shapes(**{**LAYER, **changed})
    assert serving("triton", call, "training") == OF_TRITON - {"tma", "tma-vendor", *missing}
    own = call.depthwise or "semi" not in missing
    assert serving("triton", call, "forward") == ({"one-pass", "vendor"} if own else {"vendor"})


def serving(backend: str, call, direction: str) -> set[str]:
    """The candidates of a backend that can serve one direction of a call."""
    return {candidate.name for candidate, _ in choice.ways(TRANSFORM, backend, call, direction)}


@pytest.mark.parametrize(
    "changed, missing",
    [
        ({}, ()),
        ({"max_out": 2}, ("graph",)),
        ({"b": 1.5}, ()),
        ({"weight_shape": (64, 4, 3, 3), "groups": 16}, ("one-pass", "graph")),
        ({"weight_shape": (130, 64, 3, 3), "max_out": 65}, ("one-pass", "semi", "graph")),
        ({"weight_shape": (64, 1, 3, 3), "groups": 64}, ("semi", "graph")),
        ({"dtype": torch.float32}, ("graph",)),
        ({"dtype": torch.float32, "tf32": True}, ()),
        ({"stride": (2, 2)}, ("graph",)),
        ({"detach": True}, ("graph",)),
        ({"weight_shape": (64, 1, 25, 25), "groups": 64, "padding": (12, 12)}, ("one-pass", "semi", "graph")),
        ({"weight_shape": (64, 1, 21, 21), "groups": 64, "padding": (10, 10)}, ("semi", "graph")),
        (
            {"weight_shape": (64, 1, 21, 21), "groups": 64, "padding": (10, 10), "arch": "sm_86"},
            ("one-pass", "semi", "graph"),
        ),
        (
            {"x_shape": (1, 2**14, 9, 9), "weight_shape": (2**14, 2, 3, 3), "groups": 2**13},
            ("one-pass", "semi", "graph"),
        ),
    ],
)
def test_candidates_of_cuda(changed, missing):
    call = of_shapes(**{**LAYER, **changed})
    assert serving("cuda", call, "training") == OF_CUDA - set(missing)


@pytest.mark.parametrize(
    "changed, served",
    [
        ({}, {"one-pass", "graph", "vendor"}),
        ({"stride": (2, 2)}, {"one-pass", "graph", "vendor"}),
        ({"b": 1.0, "unit": False}, {"one-pass", "vendor"}),  # nothing to fuse
        ({"b": None}, {"one-pass", "vendor"}),
        ({"max_out": 2}, {"one-pass", "vendor"}),
        ({"weight_shape": (130, 64, 3, 3), "max_out": 65}, {"vendor"}),
    ],
)
def test_forwards_of_cuda(changed, served):
    assert serving("cuda", of_shapes(**{**LAYER, **changed}), "forward") == served


@pytest.mark.parametrize("changed, served", [({}, False), ({"weight_shape": (64, 64, 1, 1), "padding": (0, 0)}, True)])
def test_explanations_as_graphs(changed, served):
    """cuDNN takes the scale in front of a product of matrices, not of a convolution."""
    assert ("graph" in serving("cuda", of_shapes(**{**LAYER, **changed}), "explanation")) == served


def test_a_refusal_goes_to_the_next_and_is_told(monkeypatch):
    """It is asked of the fastest alone, and of no candidate twice."""
    call, asked = of_shapes(**LAYER), []

    def refusal(call, direction, compiles=False):
        asked.append(compiles)
        return "cuDNN says no"

    graph = next(c for c in TRANSFORM.candidates if c.name == "graph")
    refusing = replace(graph, refusal=refusal)
    others = [c for c in TRANSFORM.candidates_of("cuda") if c is not graph]
    monkeypatch.setattr(TRANSFORM, "candidates_of", lambda names: (refusing, *others))
    chosen = choice.predicted(TRANSFORM, "cuda", call, "forward")
    assert chosen.candidate.name != "graph" and asked == [False]
    assert chosen.reason.startswith("predicted: cuda ") and chosen.reason.endswith(
        "; cuda graph refuses: cuDNN says no"
    )
    with choice.forced("graph") as forced:
        assert choice.choose(TRANSFORM, "cuda", call, "forward").candidate.name == "one-pass"
    assert asked == [False, False, True] and forced["forward"][0] is call
    slow = replace(refusing, cost=lambda call, direction: 1.0)
    monkeypatch.setattr(TRANSFORM, "candidates_of", lambda names: (slow, *others))
    assert "graph refuses" not in choice.predicted(TRANSFORM, "cuda", call, "forward").reason and len(asked) == 3


def test_a_measured_choice_that_refuses(monkeypatch):
    """As where the plan that tune stored is gone: the next measured one serves, or else the predicted one."""
    call, stored = of_shapes(**LAYER), {
        "cuda": {"candidate": "graph", "tile": None, "seconds": {"graph": 1e-5}},
        "triton": {"candidate": "vendor", "tile": None, "seconds": {"vendor": 2e-5}},
    }  # fmt: skip
    monkeypatch.setattr(choice.tuned, "find", lambda call, direction: stored)
    assert str(choice._choose(TRANSFORM, BOTH, call, "forward")) == "cuda graph"
    graph = next(c for c in TRANSFORM.candidates if c.name == "graph")
    refusing = replace(graph, refusal=lambda call, direction, compiles=False: "no plan")
    known = [refusing if c is graph else c for c in TRANSFORM.candidates]
    monkeypatch.setattr(TRANSFORM, "candidates_of", lambda names: tuple(c for c in known if c.backend in names))
    found = choice._choose(TRANSFORM, BOTH, call, "forward")
    assert (str(found), found.reason) == ("triton vendor", "measured on this device")
    del stored["triton"]
    assert "; cuda graph refuses: no plan" in choice._choose(TRANSFORM, BOTH, call, "forward").reason


MATRIX = {"x_shape": (256, 64, 56, 56), "weight_shape": (256, 64, 1, 1)}


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"arch": "sm_80"}, "the GPU's architecture is sm_80, allowed: sm_90, sm_100, sm_103"),
        ({"arch": "gfx942"}, "the GPU's architecture is gfx942, allowed: "),
        ({"dtype": torch.float32}, "dtype is torch.float32, allowed: torch.float16, torch.bfloat16"),
        ({"weight_shape": (256, 64, 3, 3)}, "kernel (3, 3), padding (0, 0), allowed: 1×1, no padding"),
        ({"stride": (3, 2)}, "stride (3, 2), allowed: one that divides the height and the width of x, (56, 56)"),
        ({"x_shape": (8, 64, 4, 4, 4), "weight_shape": (256, 64, 1, 1, 1)}, "kernel (1, 1, 1), padding (0, 0, 0)"),
        ({"padding": (1, 1)}, "padding (1, 1)"),
        ({"max_out": 2}, "groups=1 and max_out=2, allowed: 1"),
        ({"weight_shape": (256, 32, 1, 1), "groups": 2}, "groups=2 and max_out=1, allowed: 1"),
        ({"x_shape": (256, 60, 56, 56), "weight_shape": (256, 60, 1, 1)}, "60 channels of 2 bytes, allowed: multiples"),
        ({"weight_shape": (1001, 64, 1, 1)}, "1001 filters of 2 bytes, allowed: multiples of 16 bytes"),
        ({"x_shape": (2**31 - 1, 64), "weight_shape": (256, 64)}, "2147483647 pixels, allowed: at most 2147352576"),
    ],
)
def test_what_tma_does_not_take_is_named(changed, reason):
    taken, call = of_shapes(**MATRIX), of_shapes(**{**MATRIX, **changed})
    for direction in DIRECTIONS:
        assert tma_tiles.why_not(taken, direction) == [] and "tma" in serving("triton", taken, direction)
        assert reason in tma_tiles.why_not(call, direction)[0]
        assert not {"tma", "tma-vendor"} & (serving("triton", call, direction) | serving("cuda", taken, direction))


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"b": 1.5}, "b is neither 1 nor 2"),
        ({"b": None}, "b is neither 1 nor 2"),
        ({"weight_shape": (264, 64, 1, 1)}, "264 filters, allowed: at most 256"),
        ({"stride": (2, 2)}, "stride (2, 2), allowed: 1"),
        ({"arch": "sm_100"}, "256 filters, allowed: at most 128"),
    ],
)
def test_what_tma_does_not_train_is_named(changed, reason):
    call = of_shapes(**{**MATRIX, **changed})
    assert reason in tma_tiles.why_not(call, "training")[0]
    assert {"tma"} <= serving("triton", call, "forward") & serving("triton", call, "explanation")
    assert ("tma-vendor" in serving("triton", call, "training")) == (changed != {"b": None})  # which has a gradient


def test_a_stride_that_tma_walks_is_not_served_by_copies():
    for size, served in ((56, {"tma"}), (55, {"sampled-tma"})):
        call = of_shapes((256, 64, size, size), (128, 64, 1, 1), stride=(2, 2))
        for direction in ("forward", "explanation"):
            names = {c.name for c, _ in choice.ways(TRANSFORM, "triton", call, direction)}
            assert {name for name in names if "tma" in name} == served


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_choice_is_the_shortest_prediction(direction, monkeypatch):
    monkeypatch.setattr(choice.tuned, "find", lambda call, direction: None)
    for channels, size in ((64, 56), (512, 7)):
        call = of_shapes((256, channels, size, size), (channels, channels, 3, 3), padding=(1, 1))
        chosen = choice.choose(TRANSFORM, BOTH, call, direction)
        candidates = dict.fromkeys(candidate for candidate, _ in choice.ways(TRANSFORM, BOTH, call, direction))
        times = {candidate: candidate.cost(call, direction) for candidate in candidates}
        assert {candidate.backend for candidate in times} == {"cuda", "triton"}
        assert times[chosen.candidate] == min(times.values()) > traffic.plain_seconds(call, direction)
        assert chosen.reason.startswith("predicted: ")
        assert chosen == choice.choose(TRANSFORM, BOTH, call, direction)


def test_memory_and_arithmetic_decide():
    """Large images of few channels are bound by memory; small ones of many by arithmetic, the vendor's strength."""
    wide = of_shapes((256, 256, 56, 56), (64, 256, 1, 1))
    deep = of_shapes((256, 512, 7, 7), (512, 512, 3, 3), padding=(1, 1))
    for backend, name, strong in (("cuda", "one-pass", "graph"), ("triton", "tma", "vendor")):
        assert choice.predicted(TRANSFORM, backend, wide, "forward").candidate.name == name
        assert choice.predicted(TRANSFORM, backend, deep, "forward").candidate.name == strong
