"""The candidate graph where no GPU is: which calls it serves, its plans, and what takes its place where it cannot run.

Its results are those of ``test_kernels_parity.py``. Here the stand-in for cuDNN is told what to refuse.
"""

import itertools
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import error
from where import EMULATED, load_cudnn

from bcos_kernels.cli import doctor
from bcos_kernels.cli.bench.workloads import Layer
from bcos_kernels.core import choice, env
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.gpu import cuda as loaded
from bcos_kernels.gpu import plans, timing
from bcos_kernels.gpu.timing import Noted
from bcos_kernels.transform import TRANSFORM, Outputs, Spec, cuda, reference
from bcos_kernels.transform.call import of_shapes
from benchmarks import decisions

pytestmark = pytest.mark.skipif(not EMULATED, reason="cuDNN itself cannot be told what to refuse")

SIZES = itertools.count(5)
CONV = {"weight_shape": (8, 16, 3, 3), "padding": (1, 1)}
POINTWISE = {"weight_shape": (8, 16, 1, 1)}
LINEAR = {"weight_shape": (8, 16)}


class Cudnn:
    """The stand-in: what it counts and what it is told."""

    def __init__(self) -> None:
        self.library, self.changed = load_cudnn(), set()

    def set(self, name: str, value: int) -> None:
        self.changed.add(name)
        self.library.mock_set(name.encode(), value)

    def __getattr__(self, name: str) -> int:
        return self.library.mock_calls({"runs": b"BackendExecute"}.get(name, name.encode()))


@pytest.fixture
def cudnn(tmp_path):
    told = Cudnn()
    loaded.kernels.set_plan_folder("")
    yield told
    loaded.kernels.set_capturing(False)
    loaded.kernels.set_plan_folder("")
    for name, usual in dict.fromkeys(told.changed, 0).items():
        told.set(name, 2 if name == "configs" else usual)


def why_not(call, direction: str) -> str:
    """As of who measures or forces the candidate."""
    return cuda.graph_why_not(call, direction, True)


def fresh(weight_shape, **options):
    """A call of sizes that no plan was built for."""
    size = next(SIZES)
    linear = len(weight_shape) == 2
    x_shape = (size, weight_shape[1]) if linear else (2, weight_shape[1], size, 4)
    return of_shapes(x_shape, weight_shape, device="cpu", **options)


def run(call, candidate: str, direction: str, gradient_map=None) -> dict[str, torch.Tensor]:
    """What a direction returns; the vendor serves the forward of a backward."""
    inputs, grad = call.example(torch.device("cpu"))
    out = Outputs(*cuda.forward("vendor" if direction != "forward" else candidate, inputs, call, None))
    if direction == "forward":
        return {name: t for name, t in out._asdict().items() if t.numel()}
    saved = out._replace(y=out.y if call.spec.saves_output else None)
    found = cuda.backward(
        candidate, grad, inputs, saved, call, None, direction == "explanation", call.needs(direction),
        gradient_map=gradient_map,
    )  # fmt: skip
    return {name: t for name, t in zip(("dx", "dweight", "dbias"), found, strict=False) if t is not None}


def exact(call, direction: str) -> dict[str, torch.Tensor]:
    """The same in float64."""
    inputs, grad = call.example(torch.device("cpu"))
    wide = inputs._replace(**{n: t.double().requires_grad_() for n, t in inputs._asdict().items() if t is not None})
    spec = replace(call.spec, out_dtype=torch.float64, detach=direction == "explanation")
    y = reference.transform(wide, spec)
    if direction == "forward":
        return {"y": y.detach()}
    wanted = [t for t in wide if t is not None][: 1 if direction == "explanation" else None]
    return dict(zip(("dx", "dweight", "dbias"), torch.autograd.grad(y, wanted, grad.double()), strict=False))


SERVED = [
    *itertools.product((CONV, POINTWISE, LINEAR), ("forward", "training")),
    *itertools.product((POINTWISE, LINEAR), ("explanation",)),
]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"b": 1.5}, {"b": 2.5, "cos_eps": 0.0}, {"bias": True, "norm_eps": (1e-6, 0.0)}, {"unit": False}],
    ids=str,
)
@pytest.mark.parametrize("shapes, direction", SERVED, ids=str)
def test_each_is_one_run_of_a_plan(shapes, direction, options, cudnn):
    """In fp32 with tf32, which the stand-in does not round: every operation of the graph is the formula's."""
    call = fresh(**shapes, dtype=torch.float32, tf32=True, **options)
    assert why_not(call, direction) == ""
    built, runs = cudnn.built, cudnn.runs
    found, truth = run(call, "graph", direction), exact(call, direction)
    assert (cudnn.built, cudnn.runs) == (built, runs + 1)
    assert set(truth) <= set(found)
    for name, value in truth.items():
        assert error(found[name], value) < 3e-6, name


@pytest.mark.parametrize(
    "shapes, options, once",
    [
        (CONV, {}, True),
        (CONV, {"stride": (2, 2)}, True),
        (POINTWISE, {"stride": (1, 2)}, True),
        (LINEAR, {}, True),
        (CONV, {"unit": False}, True),
        (CONV, {"unit": False, "weight_dtype": torch.float32}, True),
        (CONV, {"weight_dtype": torch.float32}, False),
        ({**CONV, "wide": 5000}, {}, False),
    ],
    ids=str,
)
def test_one_kernel_forms_both_norms(shapes, options, once, cudnn):
    """Of the kernels that may be the last in front of the product it alone takes shared memory."""
    shapes = dict(shapes)
    wide = shapes.pop("wide", None)
    call = fresh(**shapes, **options)
    if wide:
        call = replace(call, x_shape=(1, *call.x_shape[1:3], wide))
    runs, found = cudnn.runs, run(call, "graph", "forward")
    assert cudnn.runs == runs + 1
    assert (loaded.kernels.last_shared() > 0) == once == cuda.forms_both_norms(call)
    inputs, _ = call.example(torch.device("cpu"))
    squares = inputs.x.double().pow(2).sum(1, keepdim=True)
    if not call.is_linear:
        ones = torch.ones(1, 1, *call.kernel, dtype=torch.float64)
        squares = torch.nn.functional.conv2d(squares, ones, stride=call.stride, padding=call.padding)
    inside, outside = call.norm_eps
    assert error(found["n"], (squares + inside).sqrt() + outside) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wider_output(dtype, cudnn):
    call = fresh(**CONV, dtype=dtype, out_dtype=torch.float32, b=1.5)
    found, vendor, runs = run(call, "graph", "forward"), run(call, "vendor", "forward"), cudnn.runs
    truth = exact(call, "forward")["y"]
    assert runs > 0 and found["y"].dtype == found["l"].dtype == torch.float32
    assert error(found["y"], truth) <= error(vendor["y"], truth)  # the vendor's z is rounded to half precision


@pytest.mark.parametrize(
    "shapes, options, direction, reason",
    [
        (CONV, {}, "explanation", "a convolution of several taps or strides takes no scale in front of the product"),
        (CONV, {"stride": (2, 1)}, "training", "the stride is not 1"),
        (CONV, {"padding": (1, 3)}, "training", "the padding is wider than the kernel"),
        (CONV, {"b": 1.0}, "training", "b is 1 and dx is the product alone"),
        (CONV, {"b": 1.0, "unit": False}, "forward", "b is 1 and nothing follows the product"),
        (CONV, {"b": None}, "forward", "b is a tensor"),
        (CONV, {"max_out": 2}, "forward", "max_out is 2, allowed: 1"),
        (CONV, {"groups": 2}, "forward", "groups is 2, allowed: 1"),
        (CONV, {"dtype": torch.float32}, "forward", "products of fp32 need tf32, which torch does not allow"),
    ],
)
def test_what_is_never_a_graph(shapes, options, direction, reason, cudnn):
    """The reason is told without cuDNN, and the vendor's candidate serves instead, also where it was not asked."""
    shapes = {**shapes, "weight_shape": (8, 8, 3, 3)} if "groups" in options else shapes
    call = fresh(**{**shapes, **options})
    if "groups" in options:
        call = replace(call, x_shape=(2, 16, *call.x_shape[2:]))
    runs, built = cudnn.runs, cudnn.built
    assert why_not(call, direction) == reason
    agree(run(call, "graph", direction), run(call, "vendor", direction))
    assert (cudnn.runs, cudnn.built) == (runs, built)
    graph = next(c for c in TRANSFORM.candidates_of("cuda") if c.name == "graph")
    assert not graph.can_serve(call, direction) or reason == "the padding is wider than the kernel"


def agree(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("shapes, direction", SERVED, ids=str)
def test_while_a_cuda_graph_is_recorded(shapes, direction, cudnn):
    """No plan is built then; one that was built before runs."""
    call, built = fresh(**shapes), cudnn.built
    loaded.kernels.set_capturing(True)
    assert why_not(call, direction) == "no plan was there when a CUDA graph was recorded"
    runs = cudnn.runs
    agree(run(call, "graph", direction), run(call, "vendor", direction))
    assert (cudnn.built, cudnn.runs) == (built, runs)
    loaded.kernels.set_capturing(False)
    first = run(call, "graph", direction)
    assert (cudnn.built, cudnn.runs) == (built + 1, runs + 1)
    loaded.kernels.set_capturing(True)
    agree(run(call, "graph", direction), first)
    assert (cudnn.built, cudnn.runs) == (built + 1, runs + 2)


def test_a_refusal_is_cudnns_own(cudnn):
    call = fresh(**CONV)
    cudnn.set("refuse_graph", 1)
    said = "cuDNN 9.28.1, looking for engines: status 3000, the mock refuses this graph"
    assert why_not(call, "forward") == said
    chosen = predicted(call)
    assert chosen.candidate.name == "vendor" and chosen.reason.endswith(f"; cuda graph refuses: {said}")
    runs = cudnn.runs
    agree(run(call, "graph", "forward"), run(call, "vendor", "forward"))
    assert cudnn.runs == runs
    cudnn.set("refuse_graph", 0)
    assert why_not(call, "forward") == said  # it is kept
    assert why_not(fresh(**CONV), "forward") == ""


def predicted(call):
    return choice.predicted(TRANSFORM, "cuda", call, "forward", lambda c: c.name in ("graph", "vendor"))


def test_no_plan_is_compiled_unasked(cudnn, tmp_path):
    """Images of ever new sizes wait for nothing: a graph is chosen once its plan is there, and stored ones are read."""
    folder, call, built = tmp_path / "plans", fresh(**CONV), cudnn.built
    loaded.kernels.set_plan_folder(str(folder))
    refusal = "; cuda graph refuses: no plan is stored; bk.tune compiles it"
    assert predicted(call).candidate.name == "vendor" and predicted(call).reason.endswith(refusal)
    assert (cudnn.built, cudnn.restored) == (built, 0) and not folder.exists()
    assert why_not(call, "forward") == "" and cudnn.built == built + 1
    assert predicted(call).candidate.name == "graph" and predicted(fresh(**CONV)).candidate.name == "vendor"
    assert cudnn.built == built + 1


def test_threads_compile(cudnn, tmp_path):
    """As tune lets them; every call has its own plan afterwards."""
    noted = [Noted(TRANSFORM, "cuda", fresh(**CONV), direction) for direction in ("forward", "training") * 4]
    wanted, built, done = timing.compiled(noted), cudnn.built, []
    assert [what for what, _ in wanted] == noted
    timing.compile_all(wanted, torch.device("cpu"), lambda: done.append(1))
    assert len(done) == 8 and cudnn.built == built + 8
    assert {cuda.graph_why_not(what.call, what.direction) for what in noted} == {""}


def test_a_run_that_fails_is_an_error(cudnn):
    call = fresh(**CONV)
    cudnn.set("fail_run", 1)
    with pytest.raises(RuntimeError, match=r"running a plan: status 5000, the mock fails to run; x is \[2, 16, "):
        run(call, "graph", "forward")


def test_a_workspace(cudnn):
    call, runs = fresh(**CONV), cudnn.runs
    expected = run(call, "graph", "forward")
    cudnn.set("workspace", 4096)
    call = replace(call, x_shape=(3, *call.x_shape[1:]))
    assert run(call, "graph", "forward")["y"].shape[0] == 3 and expected and cudnn.runs == runs + 2


def test_torchs_switches(cudnn, monkeypatch):
    call = fresh(**CONV)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    assert why_not(call, "forward") == "torch.backends.cudnn.enabled is False"
    runs = cudnn.runs
    agree(run(call, "graph", "forward"), run(call, "vendor", "forward"))
    assert cudnn.runs == runs


def test_engines_are_deterministic(cudnn):
    """Whatever torch's settings are, so that one plan serves all of them."""
    cudnn.set("nondeterministic_configs", 2)
    assert why_not(fresh(**CONV), "forward") == "cuDNN has no deterministic engine for this graph"
    cudnn.set("nondeterministic_configs", 1)
    assert why_not(fresh(**CONV), "forward") == ""


@pytest.mark.parametrize("norm_eps, reason", [((1e-80, 0.0), "norm_eps is too small for a quotient of fp32"),
                                             ((0.0, 1e-30), "")])  # fmt: skip
def test_a_zero_patch(norm_eps, reason, cudnn):
    """Its y is 0, not the quotient of 0 and 0."""
    call = fresh(**CONV, norm_eps=norm_eps)
    assert why_not(call, "forward") == reason
    inputs, _ = call.example(torch.device("cpu"))
    inputs = inputs._replace(x=torch.zeros_like(inputs.x))
    assert cuda.forward("graph", inputs, call, None)[0].count_nonzero() == 0


def test_misaligned_tensors_are_copied(cudnn):
    """cuDNN reads 16 bytes at a time; the stand-in refuses an address that is no multiple of it."""
    call, runs = fresh(**POINTWISE, bias=True), cudnn.runs
    inputs, _ = call.example(torch.device("cpu"))

    def shifted(t):
        return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].as_strided(t.shape, t.stride()).copy_(t)

    found = cuda.forward("graph", type(inputs)(*(t if t is None else shifted(t) for t in inputs)), call, None)
    assert torch.equal(found[0], cuda.forward("graph", inputs, call, None)[0]) and cudnn.runs == runs + 2


def test_sizes_without_a_plan(cudnn):
    huge = replace(fresh(**POINTWISE), x_shape=(2**19, 16, 16, 16), weight_shape=(32, 16, 1, 1))
    said = why_not(huge, "forward")
    assert said == "a tensor has 4294967296 values, allowed: up to 2147483647"
    call = fresh(**CONV)
    assert why_not(replace(call, x_shape=(0, *call.x_shape[1:])), "forward") == "there are no values"


@pytest.mark.parametrize("shapes", [CONV, POINTWISE], ids=str)
def test_a_map_of_the_gradient(shapes, cudnn):
    """What the gradient still has to pass is applied by the kernel that forms u; an explanation leaves it to others."""
    call = fresh(**shapes)
    gradient_map = torch.randn(4, call.outputs)
    runs = cudnn.runs
    found, vendor = (run(call, name, "training", gradient_map) for name in ("graph", "vendor"))
    assert cudnn.runs == runs + 1
    agree({"dweight": found["dweight"]}, {"dweight": vendor["dweight"]})
    assert error(found["dx"], vendor["dx"].double()) < 1e-2
    agree(run(call, "graph", "explanation", gradient_map), run(call, "vendor", "explanation", gradient_map))
    assert cudnn.runs == runs + 1


def test_plans_are_kept_on_disk(cudnn, tmp_path):
    folder = tmp_path / "cache" / "plans"
    loaded.kernels.set_plan_folder(str(folder))
    call = fresh(**CONV)
    for direction in ("forward", "training"):
        run(call, "graph", direction)
    files = list(folder.iterdir())
    assert len(files) == 2 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(Path(file).read_bytes().startswith(b"bcos_kernels plan 2\ncudnn 92801 ") for file in files)


def test_decisions(cudnn, tmp_path, capsys):
    """What ``make gpu`` prints first: every way is compared and timed, beside the plain layer."""
    layers = [
        Layer("vit_s", (12, 8), Spec(), (16, 8), batch=12),
        Layer("resnet50", (2, 8, 5, next(SIZES)), Spec((1, 1), (1, 1), (1, 1)), (8, 8, 3, 3), batch=2),
    ]
    built = cudnn.built
    rows = list(decisions.measured(layers, "sm_90", torch.device("cpu"), float("inf")))
    assert cudnn.built == built + 5  # all but the explanation of a convolution
    assert [row["direction"] for row in rows] == [*DIRECTIONS, *DIRECTIONS] and not any(r["refused"] for r in rows)
    for row in rows:
        assert row["plain"] > 0 and "vendor" in row["ways"] and row["fastest"] in row["ways"]
    assert ["graph" in row["ways"] for row in rows] == [True, True, True, True, False, True]
    out = tmp_path / "decisions.json"
    assert decisions.report({"commit": None}, rows, 6, out) == 0
    assert json.loads(out.read_text())["complete"] and "fastest ÷ plain, geometric mean of 2" in capsys.readouterr().out
    rows[0]["refused"]["cuda graph"] = "cuDNN says no"
    assert decisions.report({}, rows[:1], 6, None) == 0
    assert "forward of vit_s" in (said := capsys.readouterr().out) and "1 of 6 in time" in said
    rows[0]["refused"]["cuda graph"] = "its y differs from the vendor's by 1.0"
    assert decisions.report({}, rows[:1], 6, None) == 1


def test_doctor_and_clear_know_the_plans(cudnn, tmp_path, monkeypatch):
    monkeypatch.setattr(env, "PLANS", folder := tmp_path / "plans")
    loaded.kernels.set_plan_folder(str(folder))
    assert doctor._graphs("cpu") == f"cuDNN 9.28.1; 0 plans in {folder}, to which tune adds"
    assert why_not(fresh(**CONV), "forward") == ""
    (folder / "notes.txt").write_text("mock 0")
    assert doctor._graphs("cpu") == f"cuDNN 9.28.1; 1 plan in {folder}, to which tune adds"
    assert (plans.delete("mock"), plans.delete("mock 0"), plans.count()) == (0, 1, 0)
    folder.chmod(0o770)
    assert f"no plan is stored or read, as others may write {folder}" in doctor._graphs("cpu")
