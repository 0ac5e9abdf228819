"""``fold`` folds a norm into a layer only where nothing but the norm can see the layer's output."""

import einops
import pytest
import torch
from test_fold import NORM, M, differences, ready
from torch import nn

import bcos_kernels as bk

UNKNOWN = "no B-cos layer is known whose output it reads alone"
OPENED = "a forward reads its parts instead of calling it"
UNTRACED = "torch.fx cannot trace the forward that calls it: "


def pair():
    return nn.Sequential(M.BcosConv2d(6, 6, 3, padding=1), NORM(6))


class Pair(nn.Module):
    """A layer and its norm, and another layer, which can be folded in any case."""

    def __init__(self):
        super().__init__()
        (self.layer, self.norm), self.other = pair(), M.BcosConv2d(6, 6, 1)


class OptionalArgument(Pair):
    def forward(self, x, mask=None):
        y = self.layer(x)
        z = self.norm(y)
        return self.other(z + y if mask is None else z * mask)


class OptionalFlag(Pair):
    def forward(self, x, features=False):
        y = self.layer(x)
        z = self.norm(y)
        return self.other(z), y if features else self.other(z)


class AsksForTensors(Pair):
    def forward(self, x):
        y = self.layer(x)
        z = self.norm(y)
        return self.other(z + y if isinstance(x, torch.Tensor) else z)


class AsksForGradients(Pair):
    def forward(self, x):
        y = self.layer(x)
        return self.other(self.norm(y) if torch.is_grad_enabled() else y)


class ReadsTheWeight(Pair):
    def forward(self, x):
        z = self.norm(self.layer(x))
        return self.other(z * self.layer.linear.weight.norm())


class CallsTheLinearPart(Pair):
    def forward(self, x):
        return self.other(self.layer.linear(self.norm(self.layer(x))))


class CallsForward(Pair):
    def forward(self, x):
        return self.other(self.norm(self.layer(x)) + self.layer.forward(x))


class ReadsTheNorm(Pair):
    def forward(self, x):
        return self.other(self.norm(self.layer(x)) * self.norm.running_var.sum())


class Stores(Pair):
    def forward(self, x):
        self.kept = {"layer": [self.layer(x)]}
        z = self.norm(self.kept["layer"][0])
        return self.other(z)


class DependsOnValues(nn.Module):
    """A forward that cannot be traced, and that reads a layer's output beside its norm."""

    def __init__(self):
        super().__init__()
        self.pair = pair()

    def forward(self, x):
        return self.pair(x) if x.sum() < -1e9 else self.pair(x) + self.pair[0](x)


class Within(nn.Module):
    """A module that cannot be traced stands behind a pair that can."""

    def __init__(self):
        super().__init__()
        self.pair, self.inner = pair(), DependsOnValues()

    def forward(self, x):
        return self.inner(self.pair(x))


def reasons(folded, model):
    """The reasons of what stays, after the numbers were compared."""
    x = torch.rand(2, 6, 7, 7).double()
    if isinstance(model, OptionalFlag):
        for a, b in zip(folded(x, features=True), model(x, features=True), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    else:
        assert max(differences(folded, model, x)) < 1e-11
        with torch.no_grad():
            torch.testing.assert_close(folded(x), model(x), rtol=1e-11, atol=1e-13)
    return [row.reason for row in folded.folding.rows if row.became is None]


def made(kind):
    model = kind().double().eval()
    for module in model.modules():
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.mark.parametrize(
    "kind, kept",
    [
        (OptionalArgument, [UNKNOWN]),
        (OptionalFlag, [UNKNOWN]),
        (AsksForTensors, [UNKNOWN]),
        (AsksForGradients, [UNKNOWN]),
        (ReadsTheWeight, [OPENED, UNKNOWN]),
        (CallsTheLinearPart, [OPENED, UNKNOWN]),
        (CallsForward, [OPENED, UNKNOWN]),
        (ReadsTheNorm, [OPENED]),
        (Stores, [UNKNOWN]),
        (Within, [UNTRACED, UNTRACED]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_stays(kind, kept):
    model = made(kind)
    found = reasons(bk.fold(model), model)
    assert len(found) == len(kept) and all(reason.startswith(text) for reason, text in zip(found, kept, strict=True))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_between_layer_and_norm_are_not_run_and_see_what_they_saw(register):
    """A hook of a module that holds the layer sees the layer's output; one that holds the pair may be folded below."""
    model = made(lambda: nn.Sequential(nn.Sequential(M.BcosConv2d(6, 6, 1)), nn.Sequential(NORM(6)), pair()))
    seen = []
    for index in range(3):
        getattr(model[index], register)(lambda module, inputs, *output: seen.append((output or inputs)[0]))
    folded = bk.fold(model)
    assert seen == []
    x = torch.rand(2, 6, 7, 7).double()
    folded(x)
    ours = list(seen)
    model(x)
    for a, b in zip(ours, seen[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert [row.became for row in folded.folding.rows if "Norm" in row.class_name] == [None, "FoldedNorm"]


def test_a_layer_of_a_hooked_module_that_is_also_called_past_it():
    class Past(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.other = pair(), M.BcosConv2d(6, 6, 1)

        def forward(self, x):
            return self.other(self.pair(x) + self.pair[0](x))

    model = made(Past)
    model.pair.register_forward_hook(lambda *args: None)
    assert reasons(bk.fold(model), model) == [UNKNOWN]


def test_more_ways_to_call_a_forward_than_are_followed():
    class Many(Pair):
        def forward(self, x, a=False, b=None, c=False, d=None, e=False):
            return self.other(self.norm(self.layer(x)))

    with pytest.raises(ValueError, match="can be given or left out in 32 ways, more than 16"):
        bk.fold(made(Many))


@pytest.mark.parametrize("stem", [None, [8, 8]])
@pytest.mark.filterwarnings("ignore:You are trying")
def test_the_layers_of_transformers_whose_forwards_call_einops(stem):
    from bcos.models.vit import SimpleViT

    bare = M.norms.NoBias(M.norms.DetachableLayerNorm)
    sizes = {"image_size": 24, "patch_size": 6, "num_classes": 5, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 12}
    kinds = {"linear_layer": M.BcosLinear, "conv2d_layer": M.BcosConv2d, "norm_layer": bare, "norm2d_layer": NORM}
    model = ready(nn.Sequential(SimpleViT(**sizes, **kinds, act_layer=nn.Identity, conv_stem=stem)))
    folded = bk.fold(bk.accelerate(model))
    assert max(differences(folded, model, torch.rand(2, 6, 24, 24, dtype=torch.float64))) < 1e-11
    found = {(row.class_name, row.became) for row in folded.folding.rows}
    of_stem = {("BcosConv2d", "BcosConv2d"), ("BatchNormUncentered2d", "FoldedNorm")} if stem else set()
    assert found == of_stem | {("BcosLinear", "BcosLinear"), ("DetachableLayerNorm", None)}


def test_a_value_that_einops_reads_besides_the_norm():
    class Beside(Pair):
        def forward(self, x):
            y = self.layer(x)
            return self.other(self.norm(y) + einops.rearrange(y, "n c h w -> n c w h"))

    model = made(Beside)
    assert reasons(bk.fold(model), model) == [UNKNOWN]
