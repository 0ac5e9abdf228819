"""What the last call of a layer read is remembered: the next one needs no key where it reads the same objects.

That whatever changes between two calls is noticed is told by ``test_repeated.py`` and ``test_changed_layers.py``.
"""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import bcos_kernels as bk
from bcos_kernels.adopt import layer_code, published
from bcos_kernels.compat import import_reference
from bcos_kernels.transform import TRANSFORM, repeated

X = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.skipif(repeated._C is None, reason="the extension remembers the calls")


@pytest.fixture(params=[import_reference().modules.BcosConv2d, bk.BcosConv2d], ids=["accelerated", "ours"])
def layer(request):
    made = bk.accelerate(request.param(6, 4, 3)) if request.param is not bk.BcosConv2d else request.param(6, 4, 3)
    made(X), made(X)
    return made


def again(layer, x=X):
    return repeated._C.again(layer, x)


def test_a_call_that_reads_the_same(layer):
    assert torch.equal(again(layer), layer(X))
    for x in (X[:1], X.contiguous(memory_format=torch.channels_last), X[..., 1:], X.double(), None):
        assert again(layer, x) is None
    layer(X[:1]), layer(X[:1])
    assert again(layer) is None and torch.equal(again(layer, X[:1]), layer(X[:1]))
    assert again(copy.copy(layer), X[:1]) is None


def test_a_class_counts_as_the_version_that_it_was(layer):
    for owner in (layer, layer.linear):
        assert again(layer) is not None
        owner.__class__ = type("Other", (type(owner),), {})
        assert again(layer) is None
        owner.__class__ = type(owner).__base__
    assert again(layer) is not None
    type(layer).some_attribute = None
    assert again(layer) is None
    del type(layer).some_attribute


def test_equal_values_that_are_other_objects(layer):
    layer.b = float("1.5")
    expected = layer(X), layer(X)
    layer.b = float("1.5")
    assert again(layer) is None and torch.equal(layer(X), expected[0])
    layer.b = 3.5
    assert not torch.equal(layer(X), expected[0])


def test_a_module_and_its_tensors_are_not_kept(layer):
    made = copy.deepcopy(layer)
    made(X), made(X)
    assert again(made) is not None
    held = [weakref.ref(part) for part in (made, made.linear, made.linear.weight)]
    del made
    gc.collect()
    assert not any(part() for part in held)


def test_a_value_is_kept_so_that_no_other_has_its_address(layer):
    layer.b = float("1.5")
    layer(X), layer(X)
    address, expected = id(layer.b), layer(X)
    layer.b = None
    assert address not in [id(value) for value in [float("2.5") for _ in range(64)]]
    layer.b = float("2.5")
    assert not torch.equal(layer(X), expected)


def made(like, b):
    """Another layer of the same class."""
    layer = copy.deepcopy(like)
    layer.b = b
    return layer


def test_a_module_at_the_address_of_another(layer):
    x = X[:1, :, :3, :3].contiguous()
    expected = {b: made(layer, b)(x) for b in (1.0, 1.5, 2.0)}
    met, again_met = set(), 0
    for b in (*expected,) * 100:
        other = made(layer, b)
        again_met += id(other) in met
        met.add(id(other))
        assert all(torch.equal(other(x), expected[b]) for _ in range(3))
        del other
        if again_met >= 20:
            break
    assert again_met


def test_few_modules_are_remembered(layer):
    others = [copy.copy(layer) for _ in range(4096)]
    for other in others:
        other(X)
    assert again(layer) is None and again(others[-1]) is not None
    assert torch.equal(layer(X), others[0](X))


def test_a_memory_is_of_one_state_of_autocast_and_of_the_strides(layer):
    with torch.autocast("cpu", torch.bfloat16):
        assert again(layer) is None
    assert again(layer) is not None and again(layer, X.transpose(2, 3)) is None


def test_inference_mode_and_frozen_weights(layer):
    with torch.inference_mode():
        y = again(layer)
        assert y.is_inference() and not y.requires_grad
    y = again(layer)
    assert y.requires_grad and not y.is_inference()
    layer.requires_grad_(False)
    assert again(layer) is None and not layer(X).requires_grad


def test_a_module_with_another_part_and_backends_that_changed(layer, monkeypatch):
    layer.add_module("more", torch.nn.Identity())
    assert again(layer) is None
    del layer.more
    assert again(layer) is not None
    monkeypatch.setitem(TRANSFORM.backends, "another", object())
    assert again(layer) is None


def test_threads_with_layers_of_their_own(layer):
    layers = [made(layer, b) for b in (1.0, 1.25, 1.5, 2.0)] * 2  # each of them is called by two threads
    inputs = [X[: 1 + i // 4, :, : 3 + i % 4].contiguous() for i in range(8)]
    expected = [one(x) for one, x in zip(layers, inputs, strict=True)]

    def calls(i):
        return all(torch.equal(layers[i](inputs[i]), expected[i]) for _ in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(calls, range(8)))


def other_code(patch, owner, name):
    code = (lambda self, in_tensor: in_tensor.new_ones(1)).__code__
    patch.setattr(getattr(owner, name), "__code__", code)


def twice_as_much(patch, owner, name):
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **options: 2 * original(*args, **options))


@pytest.mark.parametrize("layer", [import_reference().modules.BcosConv2d], indirect=True)
@pytest.mark.parametrize(
    "change, owner, name",
    [
        (twice_as_much, torch.nn.functional, "conv2d"),
        (twice_as_much, torch.nn.functional, "avg_pool2d"),
        (twice_as_much, torch.linalg, "vector_norm"),
        (other_code, import_reference().modules.BcosConv2d, "calc_patch_norms"),
    ],
)
def test_what_the_code_of_a_layer_calls_is_replaced_after_a_call(layer, change, owner, name, monkeypatch):
    before = again(layer)
    with monkeypatch.context() as patch:
        change(patch, owner, name)
        assert again(layer) is None and not torch.allclose(layer(X), before)
    layer(X)
    assert torch.equal(again(layer), before)


@pytest.mark.parametrize("layer", [import_reference().modules.BcosConv2d], indirect=True)
def test_what_a_class_holds_is_told_by_its_version_alone(layer, monkeypatch):
    code = published.CODES[type(layer), type(layer.linear), type(None)]
    left = set(code.watched_apart[1]) - set(code.watched_beside[1])
    assert left == {"forward", "forward_impl", "calc_patch_norms", "_conv_forward", "__call__", "_call_impl"} | {
        layer_code.SLOW_NORM
    }
    for owner, name in ((type(layer).__base__, "calc_patch_norms"), (torch.nn.Module, "_call_impl")):
        with monkeypatch.context() as patch:
            assert again(layer) is not None
            patch.setattr(owner, name, getattr(owner, name))
            assert again(layer) is None
        layer(X), layer(X)
