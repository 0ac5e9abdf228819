"""Stand-ins of the published attentions: that of ``bcos`` as it is, and the late one's maths in plain torch."""

import copy
import importlib

import publishing
import torch
from families import DynamicMultiplication
from torch import nn

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

M = import_reference().modules
Early = importlib.import_module("bcos.models.vit").Attention


class Late(nn.Module):
    """That of knowledge distillation: a product of every weight with every value, and the mode in the backward."""

    def __init__(self, dim, heads, dim_head, linear_layer, norm_layer):
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = norm_layer(dim)
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = linear_layer(heads * dim_head, dim, bias=False)
        self.dyn_mul = DynamicMultiplication()

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, -1))
        weights = self.attend(self.scale * (q @ k.mT)).unsqueeze(-1)
        return self.to_out(self.dyn_mul(weight=weights, input=v[:, :, None]).sum(3).transpose(1, 2).flatten(2))


def publish(monkeypatch):
    """The table of published code with the stand-ins in it."""
    rows = [("attentions", Late, {"late": True}), ("modes", DynamicMultiplication, {"late": True})]
    publishing.publish(monkeypatch, rows)


DIM, HEADS, WIDTH = 10, 2, 6


def _with_bias(made):
    made.to_qkv = nn.Linear(DIM, 3 * HEADS * WIDTH)
    return made


def _of(kind, linear=nn.Linear, norm=nn.LayerNorm):
    return kind(DIM, HEADS, WIDTH, linear_layer=linear, norm_layer=norm)


MAKERS = {
    "early": lambda: _of(Early),
    "early, B-cos": lambda: _of(Early, M.BcosLinear, M.norms.NoBias(M.norms.DetachableLayerNorm)),
    "early, with a bias": lambda: _with_bias(_of(Early)),
    "early, another layer": lambda: _with_sequence(_of(Early)),
    "late": lambda: _of(Late),
    "late, with a bias": lambda: _with_bias(_of(Late)),
}
"""Name -> a function that makes an attention."""


def _with_sequence(made):
    made.to_qkv = nn.Sequential(made.to_qkv, nn.Tanh())
    return made


def attention(name, dtype=torch.float64):
    torch.manual_seed(3)
    return MAKERS[name]().to(dtype)


def example(seed=0, dtype=torch.float64, tokens=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((3, tokens, DIM), generator=generator, dtype=torch.float64).to(dtype)


def accelerated(module):
    """A copy of which the attention itself is accelerated, and not its parts."""
    other = copy.deepcopy(module)
    bk.accelerate(other)
    for child in other.children():
        bk.restore(child)
    return other
