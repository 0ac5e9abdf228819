"""Rows of the dynamic linear map at once and one by one, and the norms that they go through."""

import pytest
import torch
from norm_families import N
from torch.autograd import grad

import bcos_kernels as bk
from bcos_kernels.core.op import Op

ROWS = 3
NORMS = {
    "batch": lambda: N.BatchNormUncentered2d(6),
    "all": lambda: N.AllNormUncentered2d(6),
    "group": lambda: N.GroupNormUncentered2d(3, 6),
    "instance": lambda: N.GNInstanceNormUncentered2d(6),
    "position": lambda: N.PositionNormUncentered2d(6),
    "group, centered": lambda: N.DetachableGroupNorm2d(2, 6),
    "position, centered": lambda: N.DetachablePositionNorm2d(6),
}


@pytest.fixture
def taken(monkeypatch):
    """The names of the ops that took rows at once, one for each call."""
    calls, join = [], Op._of_rows

    def counted(self, grads, args):
        found = join(self, grads, args)
        if found is not None:
            calls.append(self.name)
        return found

    monkeypatch.setattr(Op, "_of_rows", counted)
    return calls


def rows(y, x, gradients):
    return torch.func.vmap(lambda g: grad(y, x, g, retain_graph=True)[0])(gradients)


def one_by_one(y, x, gradients):
    return torch.stack([grad(y, x, g, retain_graph=True)[0] for g in gradients])


def gradients_of(y):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, *y.shape, generator=generator, dtype=torch.float64).to(y)


def assert_same(many, single):
    assert many.shape == single.shape and many.dtype == single.dtype
    assert (many - single).abs().max() <= 4 * torch.finfo(many.dtype).eps * single.abs().max()


def check_norm(name, dtype, device, trains, layout, taken):
    """Rows through an accelerated norm in explanation mode are those that it has one by one."""
    torch.manual_seed(2)
    norm = NORMS[name]()
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.dim():
            tensor.data.uniform_(0.5, 2)
    norm = bk.accelerate(norm.to(device, dtype)).train(trains)
    norm.set_explanation_mode(True)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64).to(device, dtype).contiguous(memory_format=layout)
    y = norm(x.requires_grad_())
    many, single = rows(y, x, gradients_of(y)), one_by_one(y, x, gradients_of(y))
    assert_same(many, single)
    assert "centered" in name or torch.equal(many, single)  # a centered norm adds up gradients, in another order
    assert taken == ["norm"]
