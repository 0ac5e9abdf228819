"""Stand-ins of the published families of norms: their attributes, and their maths in plain torch."""

import copy
from collections import Counter
from functools import partial

import publishing
import torch
import torch.nn.functional as F
from families import DynamicMultiplication, plain, reason
from publishing import same_or_raised
from torch import nn

import bcos_kernels as bk
from bcos_kernels import tally
from bcos_kernels.compat import import_reference

N = import_reference().modules.norms


def over_channels(t):
    return None if t is None else t.view(1, -1, 1, 1)


def affine(norm, y):
    y = y if norm.weight is None else over_channels(norm.weight) * y
    return y if norm.bias is None else y + over_channels(norm.bias)


class InModeError(DynamicMultiplication):
    @property
    def is_in_explanation_mode(self):
        return self.state["fixed_weights"]


class Late:
    """In front of a norm: the late explanation mode as one of its parts."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.dynamic_multiplication = InModeError()


class Early:
    """In front of a norm: the early explanation mode."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.detach = False


class Counting(nn.BatchNorm2d):
    """The running variance of ``nn.BatchNorm2d`` without centering; ``dims`` are those of the statistics."""

    dims = (0, 2, 3)

    def variance(self, x, fixed):
        factor = self.momentum or 0.0
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if not self.training and not (self.running_mean is None and self.running_var is None):
            return self.running_var
        var = (x.detach() if fixed else x).var(self.dims, unbiased=False)
        if self.running_var is not None and self.training and self.track_running_stats:
            self.running_var.copy_((1 - factor) * self.running_var + factor * var.detach())
        return var


class LateBatch(Late, Counting):
    def forward(self, x):
        std = (self.variance(x, False) + self.eps).sqrt()
        return affine(self, self.dynamic_multiplication(input=x, weight=1 / over_channels(std)))


class LateAll(LateBatch):
    dims = (0, 1, 2, 3)

    def __init__(self, channels):
        super().__init__(1)


class CastBatch(Early, Counting):
    """B-cosification's: the result has the input's dtype."""

    def forward(self, x):
        std = (self.variance(x, self.detach) + self.eps).sqrt()
        return affine(self, x / over_channels(std)).type(x.dtype)


class Batch1d(Early, Counting):
    def forward(self, x):
        if x.dim() not in (2, 3):
            raise ValueError(f"not {x.dim()}")
        image = x[..., None, None] if x.dim() == 2 else x[..., None]
        std = (self.variance(image, self.detach) + self.eps).sqrt()
        return affine(self, image / over_channels(std)).reshape(x.shape)


class MinimalBatch(Early, nn.BatchNorm2d):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.bias = None

    def forward(self, x):
        var = self.running_var
        if self.training:
            var = (x.detach() if self.detach else x).var((0, 2, 3), unbiased=False)
            if self.running_var is not None:
                self.running_var.copy_((1 - self.momentum) * self.running_var + self.momentum * var.detach())
        return affine(self, x * over_channels((var + self.eps).rsqrt()))


class LateGroup(Late, nn.GroupNorm):
    centered = False

    def forward(self, x):
        parts = x.unflatten(1, (self.num_groups, -1))
        var, mean = torch.var_mean(parts, (2, 3, 4), correction=0, keepdim=True)
        moved = parts - mean if self.centered else parts
        y = self.dynamic_multiplication(input=moved, weight=1 / (var + self.eps).sqrt())
        return affine(self, y.flatten(1, 2))


class LateCenteredGroup(LateGroup):
    centered = True


class LatePosition(Late, nn.LayerNorm):
    def forward(self, x):
        var = x.var(1, unbiased=False, keepdim=True)
        return affine(self, self.dynamic_multiplication(input=x, weight=1 / (var + self.eps).sqrt()))


class LateTokens(Late, nn.LayerNorm):
    """The language models': it never calls PyTorch's layer norm."""

    def forward(self, x):
        dims = tuple(range(-len(self.normalized_shape), 0))
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        y = self.dynamic_multiplication(input=x - mean, weight=1 / (var + self.eps).sqrt())
        y = y if self.weight is None else self.weight * y
        return y if self.bias is None else y + self.bias


class LateLayer(LateTokens):
    """Model guidance's: outside of the mode it is PyTorch's layer norm."""

    def forward(self, x):
        if not self.dynamic_multiplication.is_in_explanation_mode:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return super().forward(x)


class Failing(Late, nn.LayerNorm):
    def forward(self, x):
        return self.dynamic_multiplication(input=input, weight=1 / x)


FORMULAS = {
    LateBatch: {"over": "batch", "centered": False},
    LateAll: {"over": "all", "centered": False},
    CastBatch: {"over": "batch", "centered": False},
    Batch1d: {"over": "batch", "centered": False, "ranks": [2, 3]},
    MinimalBatch: {"over": "batch", "centered": False},
    LateGroup: {"over": "group", "centered": False},
    LateCenteredGroup: {"over": "group", "centered": True},
    LatePosition: {"over": "position", "centered": False},
    LateTokens: {"over": "token", "centered": True},
    LateLayer: {"over": "token", "centered": True, "vendor": True},
    Failing: {"fails": "it normalizes a function"},
}


def publish(monkeypatch):
    """The table of published code with the stand-ins in it."""
    rows = [("norms", kind, formula) for kind, formula in FORMULAS.items()]
    publishing.publish(monkeypatch, [*rows, ("modes", InModeError, {"late": True})])


C = 6
IMAGE = (3, C, 5, 4)
MAKERS = {
    "BatchNormUncentered2d": (lambda: N.BatchNormUncentered2d(C), IMAGE),
    "BatchNormUncentered2d, no bias": (lambda: N.NoBias(N.BatchNormUncentered2d)(C), IMAGE),
    "BatchNormUncentered2d, unaffine": (lambda: N.Unaffine(N.BatchNormUncentered2d)(C), IMAGE),
    "BatchNormUncentered2d, cumulative": (lambda: N.BatchNormUncentered2d(C, momentum=None), IMAGE),
    "BatchNormUncentered2d, untracked": (lambda: N.BatchNormUncentered2d(C, track_running_stats=False), IMAGE),
    "AllNormUncentered2d": (lambda: N.AllNormUncentered2d(C), IMAGE),
    "GroupNormUncentered2d": (lambda: N.GroupNormUncentered2d(2, C), IMAGE),
    "GNLayerNormUncentered2d": (lambda: N.GNLayerNormUncentered2d(C), IMAGE),
    "GNInstanceNormUncentered2d, no bias": (lambda: N.NoBias(N.GNInstanceNormUncentered2d)(C), IMAGE),
    "PositionNormUncentered2d": (lambda: N.PositionNormUncentered2d(C), IMAGE),
    "DetachableGroupNorm2d": (lambda: N.DetachableGroupNorm2d(2, C), IMAGE),
    "DetachableGNLayerNorm2d, unaffine": (lambda: N.Unaffine(N.DetachableGNLayerNorm2d)(C), IMAGE),
    "DetachableGNInstanceNorm2d": (lambda: N.DetachableGNInstanceNorm2d(C), IMAGE),
    "DetachableLayerNorm": (lambda: N.DetachableLayerNorm(C), (3, 5, C)),
    "DetachableLayerNorm, two dimensions": (lambda: N.DetachableLayerNorm((5, C)), (3, 5, C)),
    "DetachablePositionNorm2d": (lambda: N.DetachablePositionNorm2d(C), IMAGE),
    "late batch": (lambda: LateBatch(C), IMAGE),
    "late batch, no bias": (lambda: N.NoBias(LateBatch)(C), IMAGE),
    "late all": (lambda: LateAll(C), IMAGE),
    "cast batch": (lambda: CastBatch(C), IMAGE),
    "1-D batch of rows": (lambda: Batch1d(C), (7, C)),
    "1-D batch of sequences": (lambda: Batch1d(C), (3, C, 5)),
    "minimal batch": (lambda: MinimalBatch(C), IMAGE),
    "late group": (lambda: LateGroup(2, C), IMAGE),
    "late centered group": (lambda: LateCenteredGroup(3, C), IMAGE),
    "late position": (lambda: LatePosition(C), IMAGE),
    "late tokens": (lambda: LateTokens(C), (3, 5, C)),
    "late layer": (lambda: LateLayer(C), (3, 5, C)),
}
"""Name -> a function that makes a norm, and the shape of an input."""


def norm(name, dtype=torch.float64):
    """A norm with parameters and buffers that are not those of a new one."""
    made = MAKERS[name][0]()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for t in (*made.parameters(), *(b for b in made.buffers() if b.is_floating_point())):
            t.copy_(torch.rand(t.shape, generator=generator) + 0.5)
    return made.to(dtype)


def example(name, seed=0, dtype=torch.float64):
    shape = MAKERS[name][1]
    offsets = torch.linspace(-1, 2, shape[1], dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offsets).to(dtype)


def accelerated(module, backend=None):
    other = copy.deepcopy(module)
    return bk.accelerate(other, backend=backend)


BATCH = "BatchNormUncentered2d"


def same_as_its_own(module, x, message):
    """The norm computes what its own forward computes, does the same to its buffers, and the report says why."""
    other = plain(module)
    for _ in range(2):
        same_or_raised(partial(module, x), partial(other, x), torch.equal)
    for mine, yours in zip(module.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, yours)
    if message is not None:
        assert message in reason(module)


def counted(run) -> Counter:
    before = tally.current()
    run()
    return tally.current() - before
