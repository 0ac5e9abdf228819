"""Calls that the extension records itself: what may change between two calls is honoured, as Python's path does."""

import threading

import programs
import pytest
import torch
from cases import IDS, error
from recorded_calls import by_python, is_recorded
from torch import nn
from torch.autograd import forward_ad, grad
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import bcos_kernels as bk
from bcos_kernels.core import kernels
from bcos_kernels.transform import TRANSFORM, Inputs, Spec

LAYER = IDS["conv3x3"]
NAMES = ["conv3x3", "grouped", "depthwise", "max_out", "explain", "b1", "b1.5", "bias", "linear", "linear_3d"]


def layer_results(name, dtype):
    x, weight, bias = IDS[name].inputs(dtype)
    inputs = [t for t in (x, weight, bias) if t is not None]
    y = IDS[name](x, weight, bias)
    first = grad(y.sin().sum(), inputs, create_graph=True)
    second = grad(first[0].square().sum(), inputs, allow_unused=True)
    return y, *grad(IDS[name](x, weight, bias).sin().sum(), inputs), *first, *(t for t in second if t is not None)


def norm_results(dtype, **options):
    x, weight, bias = (torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in ((3, 8, 4, 5), 8, 8))
    y, mean, var = bk.functional.norm(x, weight, bias, return_statistics=True, **options)
    assert is_recorded(y) and not mean.requires_grad and not var.requires_grad
    first = grad(y.sin().sum(), (x, weight, bias), create_graph=True)
    return y, mean, var, *first, *grad(first[0].square().sum(), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in NAMES if name in IDS])
def test_both_paths_give_the_same_bits(name, dtype, monkeypatch):
    torch.manual_seed(0)
    mine = layer_results(name, dtype)
    by_python(monkeypatch)
    for a, b in zip(mine, layer_results(name, dtype), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()


@pytest.mark.parametrize("options", [{}, {"over": "group", "centered": True}, {"detach": True}])
def test_both_paths_give_the_same_norms(options, monkeypatch):
    torch.manual_seed(0)
    mine = norm_results(torch.bfloat16, **options)
    by_python(monkeypatch)
    monkeypatch.setitem(globals(), "is_recorded", lambda y: True)
    torch.manual_seed(0)
    for a, b in zip(mine, norm_results(torch.bfloat16, **options), strict=True):
        assert torch.equal(a, b)


def test_grad_mode_and_what_requires_grad():
    x, weight, _ = LAYER.inputs(torch.float32)
    for _ in range(2):
        assert is_recorded(LAYER(x, weight))
        with torch.no_grad():
            assert not LAYER(x, weight).requires_grad
        with torch.inference_mode():
            assert LAYER(x, weight).is_inference()
        assert not LAYER(x.detach(), weight.detach()).requires_grad
        (dx,) = grad(LAYER(x, weight.detach()).sum(), x)
        assert torch.equal(dx, grad(LAYER(x, weight).sum(), x)[0])


def test_late_mode_between_two_calls():
    x, weight, _ = LAYER.inputs(torch.float64)
    frozen = grad(LAYER(x, weight, detach=True).sum(), x)[0]
    usual = grad(LAYER(x, weight).sum(), x)[0]
    state = {"fixed_weights": False}
    y = LAYER(x, weight, detach=state)
    for fixed, expected in ((True, frozen), (False, usual)):
        state["fixed_weights"] = fixed
        assert torch.equal(grad(y.sum(), x, retain_graph=True)[0], expected)
    assert torch.equal(grad(LAYER(x, weight).sum(), x)[0], usual)


class Seen(TorchDispatchMode):
    """Notes the operators of this package that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "bcos_kernels":
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def test_a_mode_between_two_calls_sees_the_operators():
    x, weight, _ = LAYER.inputs(torch.float64)
    y = LAYER(x, weight)
    expected = grad(y.sum(), (x, weight), retain_graph=True)
    with Seen() as forward:
        seen = LAYER(x, weight)
    with Seen() as backward:
        found = grad(y.sum(), (x, weight), retain_graph=True)
    assert forward.names == ["bcos_kernels::transform"] and backward.names == ["bcos_kernels::transform_backward"]
    assert torch.equal(seen, y) and all(map(torch.equal, found, expected))
    with Seen() as nothing:
        pass
    assert is_recorded(LAYER(x, weight)) and not nothing.names


def test_transforms_and_traces_between_two_calls():
    x, weight, _ = LAYER.inputs(torch.float64)
    x, weight = x.detach(), weight.detach()
    for _ in range(2):
        y = LAYER(x, weight)
        assert torch.equal(torch.func.vmap(lambda x: LAYER(x[None], weight)[0])(x), y)
        found = torch.func.grad(lambda w: LAYER(x, w).sum())(weight)
        weight_again = weight.clone().requires_grad_()
        assert torch.equal(found, grad(LAYER(x, weight_again).sum(), weight_again)[0])
        assert torch.equal(torch.jit.trace(lambda x: LAYER(x, weight), x)(x), y)
        value, tangent = torch.func.jvp(lambda x: LAYER(x, weight), (x,), (x,))
        assert error(value, y) < 1e-14 and tangent.shape == y.shape


def test_autocast_between_two_calls():
    layer, x = bk.BcosConv2d(4, 4, 3), torch.randn(2, 4, 6, 6, requires_grad=True)
    expected = grad(layer(x).sum(), layer.linear.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
        (found,) = grad(half.sum(), layer.linear.weight)
    assert found.dtype == torch.float32 and 0 < error(found, expected) < 2e-2
    assert torch.equal(grad(layer(x).sum(), layer.linear.weight)[0], expected)


def test_hooks_on_saved_tensors_between_two_calls():
    x, weight, _ = LAYER.inputs(torch.float64)
    expected = grad(LAYER(x, weight).sum(), (x, weight))
    packed, unpacked = [], []
    with saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: unpacked.append(t) or t):
        y = LAYER(x, weight)
    assert [t.shape for t in packed] == [x.shape, weight.shape, y.shape, y[:, :1].shape]
    assert all(map(torch.equal, grad(y.sum(), (x, weight)), expected)) and len(unpacked) == 4
    found = grad(checkpoint(LAYER, x, weight, use_reentrant=False).sum(), (x, weight))
    assert all(map(torch.equal, found, expected))
    assert is_recorded(LAYER(x, weight)) and len(packed) == 4


@pytest.mark.skipif(not hasattr(torch.autograd.graph, "node_creation_hook"), reason="torch 2.14 brought these hooks")
def test_hooks_on_created_nodes_see_each_once_and_complete(monkeypatch):
    x, weight, _ = LAYER.inputs(torch.float64)
    created = []
    with torch.autograd.graph.node_creation_hook(lambda node: created.append((node, node.next_functions))):
        recorded = LAYER(x, weight)
        by_python(monkeypatch)
        for y in (recorded, LAYER(x, weight)):
            assert [edges for node, edges in created if node == y.grad_fn] == [y.grad_fn.next_functions]


def test_an_output_that_changes_between_the_first_and_the_second_derivative():
    x, weight, _ = LAYER.inputs(torch.float64)
    results = []
    for change in (False, True):
        y = LAYER(x, weight)
        (dx,) = grad(y.sum(), x, create_graph=True)
        if change:
            y.detach().mul_(3)
        results.append(grad(dx.square().sum(), (x, weight)))
    for a, b in zip(*results, strict=True):
        assert error(a, b) < 1e-13


def test_a_call_whose_backward_was_differentiated_is_no_maker():
    """A norm behind it leaves it nothing then: the map would miss in that derivative."""
    from bcos_kernels import _C

    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    y = bk.BcosConv2d(3, 5)(x)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert _C.maker_of(y) is not None
    torch.autograd.grad(y.sum(), x, create_graph=True)
    assert _C.maker_of(y) is None


def test_graphs_that_were_freed_and_inputs_that_changed():
    x, weight, _ = LAYER.inputs(torch.float64)
    y = LAYER(x, weight).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
    y = LAYER(x, weight).sum()
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def fused_step(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.Adam([weight], lr=0.5, fused=True).step()


@pytest.mark.parametrize(
    "change",
    [fused_step, lambda w: w.data.mul_(-3), lambda w: w.detach().numpy().__imul__(-3)],
    ids=["fused optimiser", "data", "numpy"],
)
def test_a_weight_that_changes_without_its_version(change):
    """Nothing of a weight is kept from one call to the next: torch does not tell of all its changes."""
    x, weight, _ = LAYER.inputs(torch.float32)
    version, before = weight._version, LAYER(x, weight)
    change(weight)
    fresh = weight.detach().clone().requires_grad_()
    assert weight._version == version and not torch.equal(LAYER(x, weight), before)
    assert torch.equal(LAYER(x, weight), LAYER(x, fresh))
    assert torch.equal(grad(LAYER(x, weight).sum(), weight)[0], grad(LAYER(x, fresh).sum(), fresh)[0])


def test_compiled_autograd_runs_the_calls():
    from torch._dynamo import compiled_autograd

    x, weight, _ = LAYER.inputs(torch.float64)
    y = LAYER(x, weight)
    expected = grad(y.sum(), (x, weight), retain_graph=True)
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager")):
        y.sum().backward()
    assert torch.equal(x.grad, expected[0]) and torch.equal(weight.grad, expected[1])


def test_compiled_autograd_forms_an_output_again_that_was_changed():
    from torch._dynamo import compiled_autograd

    x, weight, _ = LAYER.inputs(torch.float64)
    expected = grad(LAYER(x, weight).sum(), (x, weight))
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager")):
        for changes in (False, True, False, True):
            x.grad = weight.grad = None
            y = LAYER(x, weight)
            loss = y.sum()
            if changes:
                y.detach().mul_(3)
            loss.backward()
            assert error(x.grad, expected[0]) < 1e-13 and error(weight.grad, expected[1]) < 1e-13


def test_what_the_extension_calls_is_checked():
    for wrong in ((), (object(), [None])):
        with pytest.raises(TypeError, match="kernels and a tuple of inputs are needed"):
            kernels.outputs_of(*wrong)
    made = kernels.of(TRANSFORM, TRANSFORM.call(Inputs(*LAYER.inputs(torch.float32), None), Spec()), "cpu", lambda: ())
    with pytest.raises(TypeError, match="neither a tensor nor None"):
        kernels.outputs_of(made, (1.0, None, None, None))


def test_the_extension_records_no_call_while_forward_derivatives_are_computed():
    inputs = Inputs(*IDS["linear"].inputs(torch.float32), None)
    made = kernels.of(TRANSFORM, TRANSFORM.call(inputs, Spec()), "cpu", lambda: ())
    assert kernels.outputs_of(made, inputs) is not None
    with forward_ad.dual_level():
        assert kernels.outputs_of(made, inputs) is None
    assert kernels.outputs_of(made, inputs) is not None


def test_several_threads_at_once():
    model = nn.Sequential(bk.BcosConv2d(4, 4, 3), bk.BcosConv2d(4, 4, 3))
    x = torch.randn(2, 4, 8, 8)

    def result():
        image = x.clone().requires_grad_()
        return grad(model(image).sum(), image)[0]

    expected, found = result(), []
    threads = [threading.Thread(target=lambda: found.extend(result() for _ in range(20))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60 and all(torch.equal(each, expected) for each in found)


LEAVES_BESIDE_A_BACKWARD = """
import faulthandler, threading, time
import torch
from bcos_kernels import _C

def forward(inputs):
    return [inputs[0] * 2]

def backward(grad, inputs, saved, needs, gradient_map):
    runs.set()
    time.sleep(1)  # the other thread leaves its map meanwhile
    return [grad * 2]

runs = threading.Event()
x, grad = torch.ones(3, requires_grad=True), torch.ones(3)
(y,) = _C.outputs_of(_C.kernels_started_by_python(forward, backward, backward, 1, 1, 1, False), (x,))
thread = threading.Thread(target=torch.autograd.grad, args=(y, x, grad))
faulthandler.dump_traceback_later(20, exit=True)
thread.start()
runs.wait()
_C.leave(y, grad, torch.ones(4, 3), "")
thread.join()
"""


def test_a_norm_leaves_its_map_beside_a_backward_that_needs_the_gil(tmp_path):
    (tmp_path / "leaves.py").write_text(LEAVES_BESIDE_A_BACKWARD)
    code, _, err = programs.outcome(programs.start("leaves.py", cwd=tmp_path))
    assert code == 0, err


def test_nothing_of_a_call_outlives_its_graph():
    import gc
    import weakref

    x, weight, _ = LAYER.inputs(torch.float32)
    y = LAYER(x, weight)
    kept = [weakref.ref(t.untyped_storage()) for t in (y,)]
    y.sum().backward()
    del y
    gc.collect()
    assert all(ref() is None for ref in kept)
