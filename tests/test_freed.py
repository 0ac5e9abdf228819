"""Nothing in the package keeps a module or its tensors alive: neither what it knows of classes, nor its plans."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

M = import_reference().modules
X = torch.rand(2, 6, 5, 5)


def layer():
    return M.BcosConv2d(6, 8, 3)


def part_before():
    found = layer()
    weight_norm(found.linear)
    return bk.accelerate(found)


def part_afterwards():
    found = bk.accelerate(layer())
    found(X)
    weight_norm(found.linear)
    return found


def itself_before():
    return bk.accelerate(parametrized(layer()))


def itself_afterwards():
    return parametrized(bk.accelerate(layer()))


def parametrized(found):
    """The layer with a parametrized parameter of its own, which plays no part in its formula."""
    found.register_parameter("own", nn.Parameter(torch.ones(3)))
    parametrize.register_parametrization(found, "own", nn.Identity())
    return found


def restored():
    return bk.restore(itself_afterwards())


def of_this_package():
    found = bk.BcosConv2d(6, 8, 3)
    weight_norm(found.linear)
    return found


MAKERS = (part_before, part_afterwards, itself_before, itself_afterwards, restored, of_this_package)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_a_parametrized_module_is_freed(make, train):
    """Torch makes a class for each, whose properties hold it: whoever keeps that class keeps the module's tensors."""
    found = make().train(train)
    for _ in range(2):
        found(X).sum().backward()
    bk.report(found)
    watched = [weakref.ref(module) for module in found.modules()]
    del found
    gc.collect()
    assert [module() for module in watched if module() is not None] == []


def test_accelerated_modules_of_one_class_share_a_class():
    """What is not kept is found again: also after a restoration, and for a class that was derived afterwards."""
    first, second = (bk.accelerate(layer()) for _ in range(2))
    assert type(first) is type(second)
    derived = type("Derived", (type(first),), {})
    first.__class__ = second.__class__ = derived
    assert type(bk.restore(first)) is type(bk.restore(second)) is not derived
    assert type(bk.accelerate(first)) is type(bk.accelerate(second)) is not type(bk.accelerate(layer(), backend="cpu"))
