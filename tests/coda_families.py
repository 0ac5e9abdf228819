"""Stand-ins of CoDA-Nets' modules: their attributes, and their maths in plain torch. They form w of all pixels."""

import torch
import torch.nn.functional as F
from torch import nn

from bcos_kernels.adopt import fingerprint, published


class Squash(nn.Module):
    def forward(self, w):
        size = w.norm(2, 1, keepdim=True)
        return (1 + size**2) / size


class PNorm(nn.Module):
    def __init__(self, p=1, return_norm=False):
        super().__init__()
        self.p, self.return_norm = p, return_norm

    def forward(self, w):
        size = w.norm(self.p, 1, keepdim=True)
        return size if self.return_norm else w / size


class Weights(nn.Module):
    """The names that the authors' module has."""

    def __init__(self, channels, units, rank, norm_func, kernel_size=3, stride=1, padding=None, groups=1, bias=True):
        super().__init__()
        padding = (kernel_size - 1) // 2 if padding is None else padding
        self.shape, self.out_channels, self.groups = None, units, groups
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        rows = units * channels * kernel_size**2
        self.weighting_f = nn.Sequential(
            nn.Conv2d(channels, rank, kernel_size, stride, padding, bias=False),
            nn.Conv2d(rank, rows, 1, groups=groups, bias=bias),
        )
        self.norm_func = norm_func

    def forward(self, x):
        self.shape = x.shape[-2:]
        made = self.weighting_f(x)
        w = made.unflatten(1, (-1, self.out_channels))
        return w, self.norm_func(w)

    def unfold(self, x, shape):
        patches = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        return patches.view(len(x), -1, 1, *shape[-2:])

    def fold(self, x):
        return F.fold(x, self.shape, self.kernel_size, padding=self.padding, stride=self.stride)


class Layer(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weight_mod, self.weight_matrix, self.activations = weights, None, None
        self.explain = self.reuse = self.detach = self.save_matrix = False

    def forward(self, x):
        w, size = self.weight_mod(x)
        patches = self.weight_mod.unfold(x, w.shape)
        if self.detach:
            w, size = w.detach(), size.detach()
        if self.save_matrix:
            self.weight_matrix = w
        return (w * patches).sum(1) / size.squeeze(1)

    def explanation_mode(self, detach=True):
        self.detach = detach

    def reverse(self, back):
        count, _, height, width = back.shape
        back = back.view(len(self.weight_matrix), -1, 1, *self.weight_matrix.shape[2:])
        back = (back * self.weight_matrix[:, None]).flatten(0, 1).sum(2)
        return self.weight_mod.fold(back.reshape(count, -1, height * width))


FORMULAS = [
    ("alignments", Layer, ("forward",), {"mode": "early"}),
    ("dynamic_weights", Weights, ("forward", "unfold"), {"unfolds": True}),
    ("weight_norms", Squash, ("forward",), {"norm": "squash"}),
    ("weight_norms", PNorm, ("forward",), {"norm": "lp"}),
]


def publish(monkeypatch):
    """Makes the stand-ins published code."""
    table = {section: dict(rows) for section, rows in published._table().items()}
    for section, kind, roots, formula in FORMULAS:
        table[section][fingerprint.of(kind.__mro__, roots).digest] = {"formula": formula}
    monkeypatch.setattr(published, "_table", lambda: table)
    monkeypatch.setattr(published, "CODES", {})


def layer(channels=3, units=4, rank=5, norm="squash", **options):
    norms = {"squash": Squash, "l1": lambda: PNorm(1, True), "l2": lambda: PNorm(2, True)}
    return Layer(Weights(channels, units, rank, norms[norm](), **options))


def theirs(x, projection, weight, bias=None, stride=1, padding=0, groups=1, *, norm="squash", detach=False):
    """The authors' formula, step by step in x's dtype; no care for zeros."""
    made = F.conv2d(F.conv2d(x, projection, None, stride, padding), weight, bias, groups=groups)
    kernel = projection.shape[2:]
    patches = F.unfold(x, kernel, padding=padding, stride=stride).unflatten(2, made.shape[2:]).unsqueeze(2)
    w = made.unflatten(1, (patches.shape[1], -1))
    size = w.norm(1 if norm == "l1" else 2, 1, keepdim=True)
    divisor = (1 + size**2) / size if norm == "squash" else size
    if detach:
        w, divisor = w.detach(), divisor.detach()
    return (patches * w).sum(1) / divisor.squeeze(1)


class Final(nn.Module):
    """The sum over positions, a temperature and a bias."""

    def __init__(self, temperature, bias):
        super().__init__()
        self.temperature, self.bias = temperature, bias

    def forward(self, x):
        return x.sum((2, 3)) / self.temperature + self.bias


def network(units, ranks, kernels, strides, temperature=1.0, channels=6, made=layer):
    """A CoDA-Net of these layers; paddings keep the size."""
    layers = []
    for o, r, k, s in zip(units, ranks, kernels, strides, strict=True):
        layers.append(made(channels, o, r, kernel_size=k, stride=s))
        channels = o
    return nn.Sequential(*layers, Final(temperature, -2.2))


def doubled(module):
    """The module in float64, with weights of a size at which the squashing scale is not linear."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * p[0].numel() ** -0.5 if p.dim() > 1 else torch.randn_like(p) * 0.3)
    return module.double()
