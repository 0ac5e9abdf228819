"""A call like an earlier one repeats no checks, and nothing that an answer depends on is missing from what is kept."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from recorded_calls import is_recorded

import bcos_kernels as bk
from bcos_kernels.cli.bench import host
from bcos_kernels.core import dispatch, plans
from bcos_kernels.core.candidate import Backend
from bcos_kernels.functional import bcos_conv2d as conv2d
from bcos_kernels.functional import bcos_linear as linear
from bcos_kernels.transform import TRANSFORM, checks, functional
from benchmarks import host_time

X, W = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3)
ROWS, FILTERS = torch.randn(5, 8), torch.randn(6, 8)


@pytest.fixture(autouse=True)
def _no_plans(monkeypatch):
    monkeypatch.setattr(functional, "_PLANS", {})


@pytest.fixture
def checked(monkeypatch):
    """The calls whose arguments were checked: one entry each."""
    calls, tensors = [], checks.tensors
    monkeypatch.setattr(checks, "tensors", lambda *args: calls.append(args) or tensors(*args))
    return calls


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear(ROWS, FILTERS),
        lambda: linear(ROWS[None], FILTERS, torch.ones(6), b=1.5),
        lambda: linear(ROWS, FILTERS, b=torch.rand(()) + 1),
        lambda: linear(ROWS, FILTERS, detach={"fixed_weights": True}),
        lambda: conv2d(X, W, stride=2, padding=(1, 1)),
        lambda: conv2d(X[0], W, padding="same", padding_mode="reflect", backend="reference"),
    ],
)
def test_a_repeated_call_is_not_checked_again(call, checked):
    for _ in range(3):
        call()
    assert len(checked) == 1


def test_modules_repeat_no_checks(checked):
    for module in (bk.BcosConv2d(4, 6, 3), host.pairs("cpu")["accelerated bcos.modules.BcosConv2d"][0]):
        checked.clear()
        x = torch.randn(2, module.in_channels, 8, 8)
        for _ in range(3):
            module(x)
        assert len(checked) == 1


def functions_of(call) -> list[str]:
    """The names of this package's functions of Python that a call goes through."""
    found, before = [], sys.getprofile()

    def note(frame, event, _):
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(Path(bk.__file__).parent):
            found.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


IN_EVERY_CALL = ["transform", "of", "apply", "fused"]


def test_a_repeated_call_goes_through_few_functions():
    """Behind a backward, whose code takes their place in the caches, each of them costs half a microsecond."""
    named = host.pairs("cpu")
    own, accelerated = named["BcosConv2d"][0], named["accelerated bcos.modules.BcosConv2d"][0]
    x = torch.randn(1, 8, 4, 4)
    for call, expected in (
        (lambda: conv2d(X, W), ["bcos_conv2d", *IN_EVERY_CALL]),
        (lambda: own(x), ["forward", "forward_impl", "repeated"]),
        (lambda: accelerated(x), ["forward"]),
    ):
        call()
        assert functions_of(call) == expected


@pytest.mark.parametrize(
    "right, wrong",
    [
        ({"stride": 1}, {"stride": True}),
        ({"stride": 1}, {"stride": 1.0}),
        ({"stride": (1, 1)}, {"stride": (1, True)}),
        ({"padding": (0, 0)}, {"padding": (0, False)}),
        ({"dilation": 1}, {"dilation": 1.0}),
        ({"groups": 1}, {"groups": True}),
        ({"max_out": 1}, {"max_out": 1.0}),
        ({"detach": True}, {"detach": 1}),
        ({"detach": False}, {"detach": 0.0}),
        ({"detach": {"fixed_weights": True}}, {"detach": {}}),
        ({"exact_two": True}, {"exact_two": 1}),
        ({"weight_in_norm": False}, {"weight_in_norm": 0}),
        ({"norm_eps": (0.0, 1.0)}, {"norm_eps": (False, True)}),
        ({"b": torch.tensor(2.0)}, {"b": torch.tensor([2.0, 2.0])}),
    ],
)
def test_equal_arguments_of_other_types_are_refused_all_the_same(right, wrong):
    with pytest.raises((TypeError, ValueError)) as first:
        conv2d(X, W, **wrong)
    conv2d(X, W, **right)
    with pytest.raises(type(first.value)) as second:
        conv2d(X, W, **wrong)
    assert str(second.value) == str(first.value)


@pytest.mark.parametrize("key", [plans.key, plans._key_in_python], ids=["extension", "python"])
def test_what_a_key_tells_apart(key):
    backends = TRANSFORM.backends
    other = backends | {"cpu": Backend("cpu", backends["cpu"].why_not)}
    calls = [
        (backends, None, ROWS, FILTERS, 2.0, (1,)), (backends, None, ROWS, FILTERS, 2, (1,)),
        (backends, None, ROWS, FILTERS, 2.0, (True,)), (backends, None, ROWS[1:], FILTERS, 2.0, (1,)),
        (backends, None, ROWS.double(), FILTERS, 2.0, (1,)), (backends, "cpu", ROWS, FILTERS, 2.0, (1,)),
        (other, None, ROWS, FILTERS, 2.0, (1,)), (backends, None, ROWS, FILTERS, 2.0, (1 + 2**16,)),
        (backends, None, ROWS, FILTERS, 2.0, (1 + 2**32,)),
    ]  # fmt: skip
    keys = {key(*call) for call in calls}
    assert len(keys) == len(calls) and key(backends, None, torch.randn(5, 8), FILTERS, 2.0, (1,)) in keys
    with torch.autocast("cpu", torch.bfloat16):
        assert key(*calls[0]) not in keys
    assert key(backends, None, ROWS, [1]) is None and key(backends, None, "rows") is None


def test_a_list_is_no_key_and_serves_all_the_same(checked):
    expected = conv2d(X, W, stride=(2, 1))
    for _ in range(2):
        assert torch.equal(conv2d(X, W, stride=[2, 1]), expected)
    assert len(checked) == 3


OPTIONS = [
    {}, {"b": 1}, {"b": 1.5}, {"b": torch.tensor(1.5)}, {"max_out": 2}, {"normalize_weights": False}, {"detach": True},
    {"weight_in_norm": True}, {"norm_eps": (1e-2, 0.0)}, {"b": 1.5, "cos_eps": 1e-2}, {"exact_two": False},
    {"stride": 2}, {"padding": 1}, {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"dilation": 2},
    {"backend": "reference"}, {"detach": {"fixed_weights": True}},
]  # fmt: skip


def test_each_option_has_its_own_answer():
    """All options in turns, twice: each result equals the one that a call without a memory gives."""

    def result(options):
        x = X.clone().requires_grad_()
        y = conv2d(x, W, **options)
        return y, *torch.autograd.grad(y.sum(), x)

    expected = []
    for options in OPTIONS:
        functional._PLANS.clear()
        expected.append(result(options))
    for _ in range(2):
        for options, values in zip(OPTIONS, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(result(options), values, strict=True)), options


def test_dtype_device_and_autocast_have_their_own_answers():
    for _ in range(2):
        assert conv2d(X, W).dtype == torch.float32
        assert conv2d(X.double(), W.double()).dtype == torch.float64
        assert conv2d(X.to("meta"), W.to("meta")).is_meta
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                assert conv2d(X, W).dtype == torch.float32
                assert conv2d(X, W, b=1).dtype == dtype
        with pytest.raises(TypeError, match="weight has dtype"):
            conv2d(X.bfloat16(), W)
        with torch.autocast("cpu", torch.bfloat16):
            conv2d(X.bfloat16(), W)


def test_the_backend_is_chosen_anew_when_the_choice_changes(monkeypatch):
    weight = W.clone().requires_grad_()
    assert is_recorded(conv2d(X, weight))
    monkeypatch.setattr(dispatch, "FORCED", "reference")
    assert not is_recorded(conv2d(X, weight))
    monkeypatch.setattr(dispatch, "FORCED", "nonsense")
    with pytest.raises(ValueError, match="BACKEND='nonsense'"):
        conv2d(X, weight)
    monkeypatch.setattr(dispatch, "FORCED", None)
    assert is_recorded(conv2d(X, weight))
    monkeypatch.setitem(TRANSFORM.backends, "cpu", Backend("cpu", lambda call: ["it is refused"]))
    assert not is_recorded(conv2d(X, weight))


NORM = importlib.import_module("bcos_kernels.norm.functional")


@pytest.mark.parametrize("module, call", [(functional, lambda: conv2d(X, W)), (NORM, lambda: bk.functional.norm(X))])
def test_a_plan_is_made_once(module, call, monkeypatch):
    made, make = [], module._make_plan
    monkeypatch.setattr(module, "_PLANS", {})
    monkeypatch.setattr(module, "_make_plan", lambda *args: made.append(args) or make(*args))
    for _ in range(2):
        call()
    assert len(made) == 1


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(plans, "MOST", 4)
    for rows in range(1, 12):
        assert linear(torch.randn(rows, 8), FILTERS).shape == (rows, 6)
        assert len(functional._PLANS) <= 4


def test_a_trace_leaves_no_plan_behind():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: conv2d(x, W), fullgraph=True, backend="eager", dynamic=True)
    for batch in (2, 3):
        assert compiled(torch.randn(batch, 4, 8, 8)).shape == (batch, 6, 6, 6)
    assert not functional._PLANS


def test_symbolic_sizes_outside_of_dynamo():
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x, w: conv2d(x, w, padding=1), tracing_mode="symbolic")(X[..., :7], W)
    x = torch.randn(3, 4, 9, 5)
    assert torch.equal(graph(x, W), conv2d(x, W, padding=1))


@pytest.mark.parametrize("layer, inputs", [(linear, (ROWS, FILTERS)), (conv2d, (X, W))])
@pytest.mark.parametrize("which", [0, *(pytest.param(which, marks=pytest.mark.slow) for which in (1, (0, 1)))])
def test_compiled_functional_gradients(layer, inputs, which):
    """The gradient of an argument that goes straight into the layer, with no operator between."""
    torch._dynamo.reset()
    gradients = torch.func.grad(lambda *args: layer(*args).square().sum(), argnums=which)
    compiled = torch.compile(lambda *args: gradients(*args), fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(compiled, gradients(*inputs))


def test_the_command_prints_a_table(capsys):
    assert host_time.main(["--seconds", "0.01", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in lines[0]
    assert [line.count("|") for line in lines[2:]] == [5] * 8


def test_rows_of_a_result(several_threads):
    threads = torch.get_num_threads()
    rows = host.rows("cpu", 0.0)
    assert torch.get_num_threads() == threads
    assert len({(row["layer"], row["measure"]) for row in rows}) == len(rows) == 18
    assert all(row["plain"] > 0 for row in rows)
