"""What the last call of a layer read is remembered: the next one needs no key where it reads the same objects.

That whatever changes between two calls is noticed is told by ``test_repeated.py`` and ``test_changed_layers.py``.
"""

import copy
import gc
import weakref

import pytest
import torch

import bcos_kernels as bk
from bcos_kernels.adopt import layer_code, published
from bcos_kernels.compat import import_reference
from bcos_kernels.transform import repeated

X = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.skipif(repeated._C is None, reason="the extension remembers")


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
