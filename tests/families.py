"""Stand-ins of the published families of B-cos layers: their attributes, and their maths in plain torch."""

import copy
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

import bcos_kernels as bk
from bcos_kernels.adopt import fingerprint, published
from bcos_kernels.adopt.accelerate import plan_of
from bcos_kernels.compat import import_reference

M = import_reference().modules


def window_norm(x, conv, groups=1):
    """√(Σ_patch x² + 1e-6) per group, by a convolution with ones."""
    ones = x.new_ones(groups, conv.weight.shape[1], *conv.kernel_size)
    return (F.conv2d(x * x, ones, None, conv.stride, conv.padding, conv.dilation, groups) + 1e-6).sqrt()


def row_norm(x):
    return (x * x).sum(-1, keepdim=True).add(1e-6).sqrt()


def _max(l, max_out, dim):  # noqa: E741
    return l.unflatten(dim, (-1, max_out)).max(2 if dim == 1 else -1).values


class UnitConv2d(nn.Conv2d):
    def forward(self, x):
        length = self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return self._conv_forward(x, self.weight / length, self.bias)


class UnitLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


class FirstVersion:
    """Namespace of the first version: its own names, a scale for every b, MaxOut of two by default."""

    class BcosConv2d(nn.Module):
        def __init__(self, inc, outc, kernel_size=1, stride=1, padding=0, max_out=2, b=2, scale_fact=100):
            super().__init__()
            self.linear = UnitConv2d(inc, outc * max_out, kernel_size, stride, padding, bias=False)
            self.inc, self.outc, self.max_out, self.b = inc, outc * max_out, max_out, b
            self.stride, self.padding, self.kernel_size = stride, padding, kernel_size
            self.kssq = kernel_size**2
            self.scale = kernel_size * math.sqrt(inc) / scale_fact
            self.detach = False

        def explanation_mode(self, detach=True):
            self.detach = detach

        def forward(self, x):
            return self.fwd_2(x) if self.b == 2 else self.fwd_b(x)

        def fwd_b(self, x):
            l = _max(self.linear(x), self.max_out, 1)  # noqa: E741
            if self.b == 1:
                return l / self.scale
            cos = (l / window_norm(x, self.linear)).abs() + 1e-6
            return l * (cos.detach() if self.detach else cos).pow(self.b - 1) / self.scale

        def fwd_2(self, x):
            l, n = _max(self.linear(x), self.max_out, 1), window_norm(x, self.linear)  # noqa: E741
            size = l.abs()
            return l * (size / n).detach() / self.scale if self.detach else l * size / n / self.scale


class Bcosification:
    """Namespace of B-cosification: raw weights, a bias inside, b fixed, clamped, or learned as b + 2."""

    class _Base(nn.Module):
        def __init__(self, linear, b, clamping, b_loss):
            super().__init__()
            self.linear, self.clamping, self.b_loss = linear, clamping, b_loss
            self.b = nn.Parameter(torch.tensor(float(b))) if clamping or b_loss else b
            self.max_out, self.detach = 1, False

        def set_explanation_mode(self, activate=True):
            self.detach = activate

        def forward(self, x):
            l = self.linear(x)  # noqa: E741
            if self.b == 1 and not self.b_loss:
                return l
            b = self.b + 2 if self.b_loss else self.b.clamp(1 + 1e-6) if self.clamping else self.b
            cos = l.abs() / self.calc_norms(x)
            if self.b != 2 or self.b_loss:
                cos = (cos + 1e-6) ** (b - 1)
            return l * (cos.detach() if self.detach else cos)

    class BcosifyConv2d(_Base):
        def __init__(self, *args, b=2, clamping=False, b_loss=False, **options):
            super().__init__(nn.Conv2d(*args, **options), b, clamping, b_loss)

        def calc_norms(self, x):
            return window_norm(x, self.linear)

    class BcosifyLinear(_Base):
        def __init__(self, *args, b=2, clamping=False, b_loss=False):
            super().__init__(nn.Linear(*args), b, clamping, b_loss)

        def calc_norms(self, x):
            return x.norm(dim=-1, keepdim=True) + 1e-12


class _LateProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale, l, state):  # noqa: E741
        ctx.save_for_backward(scale, l)
        ctx.state = state
        return scale * l

    @staticmethod
    def backward(ctx, grad):
        scale, l = ctx.saved_tensors  # noqa: E741
        return None if ctx.state["fixed_weights"] else grad * l, grad * scale, None


class DynamicMultiplication(nn.Module):
    """The late explanation mode: a dict that the backward reads."""

    def __init__(self):
        super().__init__()
        self.state = {"fixed_weights": False}

    def set_explanation_mode(self, on=True):
        self.state["fixed_weights"] = on

    def forward(self, *, weight, input):
        return _LateProduct.apply(weight, input, self.state)


class ModelGuidance:
    """Namespace of the late layers; the linear one has no epsilon on its cosine."""

    class _Base(nn.Module):
        def __init__(self, linear, b, max_out, normalize_weights):
            super().__init__()
            self.linear, self.b, self.max_out, self.normalized_weights = linear, b, max_out, normalize_weights
            self.dynamic_multiplication = DynamicMultiplication()

        def forward(self, x):
            l = _max(self.linear(x), self.max_out, self.dim)  # noqa: E741
            if self.b == 1:
                return l
            norm = self.calc_norms(x)
            if not self.normalized_weights:
                norm = norm * self.linear.weight.flatten(1).norm(dim=1).view(-1, *self.ones)
            cos = l.abs() / norm
            scale = cos if self.b == 2 else (cos + self.epsilon) ** (self.b - 1)
            return self.dynamic_multiplication(weight=scale, input=l)

    class BcosConv2d(_Base):
        dim, ones, epsilon = 1, (1, 1), 1e-6

        def __init__(self, inc, outc, kernel_size=1, stride=1, padding=0, b=2, max_out=1, normalize_weights=True):
            kind = UnitConv2d if normalize_weights else nn.Conv2d
            linear = kind(inc, outc * max_out, kernel_size, stride, padding, bias=False)
            super().__init__(linear, b, max_out, normalize_weights)
            self.in_channels, self.out_channels = inc, outc

        def calc_norms(self, x):
            return window_norm(x, self.linear)

    class BcosLinear(_Base):
        dim, ones, epsilon = -1, (), 0.0

        def __init__(self, in_features, out_features, b=2, max_out=1, normalize_weights=True):
            linear = UnitLinear(in_features, out_features * max_out, bias=False)
            super().__init__(linear, b, max_out, normalize_weights)
            self.in_features, self.out_features = in_features, out_features

        def calc_norms(self, x):
            return row_norm(x)


class LanguageModel:
    """Namespace of the language models' layer: model guidance's with an epsilon on the cosine."""

    class BcosLinear(ModelGuidance.BcosLinear):
        epsilon = 1e-6


class Minimal:
    """Namespace of the one-file ResNet: the layer is the convolution."""

    class BcosConv2d(nn.Conv2d):
        def __init__(self, *args, b=2.0, **options):
            super().__init__(*args, bias=False, **options)
            self.b, self.detach = b, False

        def set_explanation_mode(self, on):
            self.detach = on

        def forward(self, x):
            unit = F.normalize(self.weight, dim=(1, 2, 3))
            l = self._conv_forward(x, unit, None)  # noqa: E741
            if self.b == 1:
                return l
            norm = window_norm(x, self, self.groups)
            cos = l.abs() / norm.repeat_interleave(self.out_channels // self.groups, 1)
            if self.b != 2:
                cos = (cos + 1e-6) ** (self.b - 1)
            return l * (cos.detach() if self.detach else cos)


class OneFormula:
    """Namespace of the layer that has the first version's formula of every other b at b = 2 as well."""

    class BcosConv2d(FirstVersion.BcosConv2d):
        explanation_mode = None

        def explanationMode(self, detach=True):
            self.detach = detach

        def forward(self, x):
            return self.fwd_b(x)


class ScaledLinear(nn.Module):
    """The linear layer with an option to divide its output by a scale, but for b = 1."""

    def __init__(self, in_features, out_features, b=2, max_out=1, scale=1.0):
        super().__init__()
        self.linear = UnitLinear(in_features, out_features * max_out, bias=False)
        self.out_features, self.max_out, self.b, self.scale, self.detach = out_features, max_out, b, scale, False

    def set_explanation_mode(self, on=True):
        self.detach = on

    def forward(self, x):
        l = _max(self.linear(x), self.max_out, -1)  # noqa: E741
        if self.b == 1:
            return l
        cos = l.abs() / (x.norm(dim=-1, keepdim=True) + 1e-12)
        cos = cos if self.b == 2 else (cos + 1e-6) ** (self.b - 1)
        return l * (cos.detach() if self.detach else cos) / self.scale


class ClampedLinear(ScaledLinear):
    """The linear layer that clamps its cosine at every b but 1 and 2, and can make a constant of its output."""

    def __init__(self, *args, detach_output=False, **options):
        super().__init__(*args, **options)
        self.detach_output = detach_output

    def forward(self, x):
        l = _max(self.linear(x), self.max_out, -1)  # noqa: E741
        if self.b != 1:
            cos = l.abs() / (x.norm(dim=-1, keepdim=True) + 1e-12)
            cos = cos if self.b == 2 else cos.clamp(min=1e-6) ** (self.b - 1)
            l = l * (cos.detach() if self.detach else cos)  # noqa: E741
        return l.detach() if self.detach_output and self.detach else l


FORMULAS = (
    (FirstVersion.BcosConv2d, (1e-6, 0.0), 1e-6),
    (OneFormula.BcosConv2d, (1e-6, 0.0), 1e-6),
    (ScaledLinear, (0.0, 1e-12), 1e-6),
    (ClampedLinear, (0.0, 1e-12), 1e-6),
    (Bcosification.BcosifyConv2d, (1e-6, 0.0), 1e-6),
    (Bcosification.BcosifyLinear, (0.0, 1e-12), 1e-6),
    (ModelGuidance.BcosConv2d, (1e-6, 0.0), 1e-6),
    (ModelGuidance.BcosLinear, (1e-6, 0.0), 0.0),
    (LanguageModel.BcosLinear, (1e-6, 0.0), 1e-6),
    (Minimal.BcosConv2d, (1e-6, 0.0), 1e-6),
)
"""What each family's layer computes: the epsilons of its norm and of its cosine."""

OPTIONS = {
    Minimal.BcosConv2d: {"unit": True},
    OneFormula.BcosConv2d: {"exact_two": False},
    ScaledLinear: {"scaled_at_one": False},
    ClampedLinear: {"exponents": [1, 2]},
}
"""What else the table says of some of them."""


@cache
def digests() -> dict[type, str]:
    """Class -> what its code is published as, before a test changes any of it."""
    kinds = (*(kind for kind, *_ in FORMULAS), UnitConv2d, UnitLinear, DynamicMultiplication)
    return {kind: fingerprint.of(kind.__mro__).digest for kind in kinds}


def publish(monkeypatch):
    """The table of published code with the stand-ins in it."""
    table = {kind: dict(rows) for kind, rows in published._table().items()}
    for kind, norm_eps, cos_eps in FORMULAS:
        formula = {"norm_eps": norm_eps, "cos_eps": cos_eps, **OPTIONS.get(kind, {})}
        table["layers"][digests()[kind]] = {"formula": formula}
    for kind in (UnitConv2d, UnitLinear):
        table["linears"][digests()[kind]] = {"formula": {"unit": True}}
    table["modes"][digests()[DynamicMultiplication]] = {"formula": {"late": True}}
    monkeypatch.setattr(published, "_table", lambda: table)
    monkeypatch.setattr(published, "CODES", {})


def set_mode(layer, on):
    """The explanation mode of a layer of any family."""
    target = getattr(layer, "dynamic_multiplication", layer)
    names = "explanation_mode", "explanationMode", "set_explanation_mode"
    next(switch for name in names if (switch := getattr(target, name, None)) is not None)(on)


def layers(b):
    """``name -> layer`` of every family at one exponent, in float64."""
    made = {
        "v1": FirstVersion.BcosConv2d(6, 4, 3, padding=1, b=b),
        "v1 1x1": FirstVersion.BcosConv2d(6, 4, b=b, max_out=1, stride=2),
        "one formula": OneFormula.BcosConv2d(6, 4, 3, padding=1, b=b),
        "scaled linear": ScaledLinear(6, 4, b=b, max_out=2, scale=0.3),
        "bcosify conv": Bcosification.BcosifyConv2d(6, 4, 3, padding=1, b=b),
        "bcosify clamped": Bcosification.BcosifyConv2d(6, 4, 3, b=b, clamping=True),
        "bcosify b + 2": Bcosification.BcosifyConv2d(6, 4, 3, b=b - 2, b_loss=True),
        "bcosify linear": Bcosification.BcosifyLinear(6, 4, b=b),
        "bcosify linear b + 2": Bcosification.BcosifyLinear(6, 4, b=b - 2, b_loss=True),
        "late conv": ModelGuidance.BcosConv2d(6, 4, 3, padding=1, b=b, max_out=2),
        "late conv |w|": ModelGuidance.BcosConv2d(6, 4, 3, padding=1, b=b, normalize_weights=False),
        "late linear": ModelGuidance.BcosLinear(6, 4, b=b),
        "late linear |w|": ModelGuidance.BcosLinear(6, 4, b=b, normalize_weights=False),
        "language model": LanguageModel.BcosLinear(6, 4, b=b),
        "minimal": Minimal.BcosConv2d(6, 4, 3, padding=1, b=b),
        "minimal groups": Minimal.BcosConv2d(6, 4, 3, padding=1, stride=2, groups=2, b=b),
    }
    return {name: layer.double() for name, layer in made.items()}


def is_accelerated(module):
    return plan_of(module) is not None


def reason(layer):
    """Why the one layer in a module is not accelerated."""
    (row,) = bk.report(layer).rows
    assert row.backend is None
    return row.reason


def plain(layer):
    """A copy that runs its own forward."""
    return bk.restore(copy.deepcopy(layer))


def example(layer, seed=0):
    shape = (3, 6, 7, 5) if any(isinstance(m, nn.Conv2d) for m in layer.modules()) else (4, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outcome(layer, x, explain=False):
    """Output, input gradient and parameter gradients; late modes are entered for the backward."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    late = hasattr(layer, "dynamic_multiplication")
    if not late:
        set_mode(layer, explain)
    y = layer(x)
    set_mode(layer, explain)
    y.backward(torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape))
    set_mode(layer, False)
    named = {name: p.grad for name, p in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **named}


def assert_close(ours, theirs, rtol=1e-11):
    assert ours.keys() == theirs.keys()
    for name, truth in theirs.items():
        if truth is None:  # the shortcut at b = 2 hides b from autograd
            continue
        assert (ours[name] - truth).norm() <= rtol * truth.norm(), name


def net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(
        M.BcosConv2d(6, 8, 3, padding=1, dtype=dtype),
        nn.ReLU(),
        M.BcosConv2d(8, 4, 3, stride=2, b=1.5, max_out=2, dtype=dtype),
        nn.Flatten(),
        M.BcosLinear(4 * 3 * 2, 5, dtype=dtype),
    )


X = torch.randn(2, 6, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class OwnForward(M.BcosConv2d):
    def forward(self, in_tensor):
        return 2 * super().forward(in_tensor)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def altered(layer, **attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer
