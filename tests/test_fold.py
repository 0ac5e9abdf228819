"""``fold``: norms of filters and batch norms become part of the weights; numbers stay, and so does all in doubt."""

import copy
import pickle

import families
import pytest
import torch
from families import M
from norm_families import N
from torch import nn
from torch.autograd import grad
from torch.nn.utils import prune

import bcos_kernels as bk
from bcos_kernels import compat, explanation
from bcos_kernels.conversion.fold import FoldedNorm

compat.import_reference()
from bcos.models.densenet import BcosDenseNet  # noqa: E402
from bcos.models.resnet import resnet18  # noqa: E402

NORM = N.NoBias(N.BatchNormUncentered2d)


def ready(model, channels=6, dtype=torch.float64, size=24):
    """The model in evaluation, with statistics of random images and with weights of either sign in its norms."""
    model = model.to(dtype)
    for module in model.modules():
        if hasattr(module, "running_var") and module.weight is not None:
            nn.init.uniform_(module.weight, -1.5, 1.5)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(4, channels, size, size, dtype=dtype))
    return model.eval()


def outcome(model, x):
    """Output and explanation."""
    x = x.clone().requires_grad_()
    with explanation.explanation_mode(model):
        y = model(x).flatten(1)
    return y.detach(), grad(y[:, 0].sum(), x)[0]


def differences(model, other, x):
    return [((a - b).norm() / b.norm()).item() for a, b in zip(outcome(model, x), outcome(other, x), strict=True)]


def check(model, kept=None, size=24):
    """Folds; the numbers stay, and the norms that stay have the reason ``kept``."""
    before = copy.deepcopy(model.state_dict())
    folded = bk.fold(model)
    x = torch.rand(2, 6, size, size, dtype=torch.float64)
    assert max(differences(folded, model, x)) < 1e-11
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    norms = [row for row in folded.folding.rows if "Norm" in row.class_name]
    assert {row.became for row in norms} <= {"FoldedNorm" if kept is None else None}
    if kept is not None:
        assert norms and all(kept in row.reason for row in norms), [row.reason for row in norms]
    return folded


def pair(norm=None, **options):
    layer = M.BcosConv2d(6, 8, 3, padding=1, **options)
    return nn.Sequential(layer, norm or NORM(8), nn.AvgPool2d(2), M.BcosConv2d(8, 5, 3))


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("options", [{}, {"b": 1}, {"max_out": 2, "b": 1}, {"stride": 2}, {"groups": 2}], ids=str)
def test_a_layer_and_its_norm(options, accelerated):
    model = ready(pair(**options))
    if options.get("max_out"):
        model[1].weight.data.abs_()
    folded = check(bk.accelerate(model) if accelerated else model)
    assert isinstance(folded[1], FoldedNorm) and not any(p.requires_grad for p in folded.parameters())
    torch.testing.assert_close(folded[0](x := torch.rand(1, 6, 9, 9).double()), model[:2](x))


@pytest.mark.parametrize(
    "norm", [NORM(8), N.NoBias(N.AllNormUncentered2d)(8), N.BatchNormUncentered2d(8, affine=False)]
)
def test_norms(norm):
    check(ready(pair(norm)))


@pytest.mark.parametrize("own", [bk.BcosConv2d(6, 8, 3, max_out=2), bk.BcosConv2dWithScale(6, 8, 3, b=1)])
def test_layers_of_this_package(own):
    model = ready(nn.Sequential(own, NORM(8)))
    model[1].weight.data.abs_()
    check(model)


def test_a_zero_filter_and_a_zero_factor():
    model = ready(nn.Sequential(bk.BcosConv2d(6, 8, 3), NORM(8)))
    model[0].linear.weight.data[2] = 0
    model[1].weight.data[3] = 0
    y, dx = outcome(check(model), torch.rand(2, 6, 9, 9).double())
    assert y.isfinite().all() and dx.isfinite().all()


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_residual_network(accelerated):
    model = ready(resnet18(norm_layer=NORM, num_classes=7))
    if accelerated:
        bk.accelerate(model)
    folded = check(model)
    assert len(folded.folding.converted) == 21 + 20
    assert all(row.backend for row in bk.report(folded).rows)


def test_a_densely_connected_network():
    """The norm in front of a layer reads what several layers wrote."""
    model = ready(BcosDenseNet(8, (2, 2), 8, norm_layer=NORM, num_classes=5, small_inputs=True), size=16)
    folded = bk.fold(model)
    assert max(differences(folded, model, torch.rand(2, 6, 16, 16).double())) < 1e-11
    names = [row.name for row in folded.folding.rows if row.became == "FoldedNorm"]
    assert len(names) >= 4 and all(name.endswith(("norm2", "norm0")) for name in names)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"learn_b": "clamp"}])
def test_a_converted_network(options):
    from torchvision.models import resnet18

    model = ready(bk.convert(resnet18(num_classes=7), **options).eval())
    folded = bk.fold(model)
    assert max(differences(folded, model, torch.rand(2, 6, 24, 24).double())) < 1e-11
    norms = [row.became for row in folded.folding.rows if "Norm" in row.class_name]
    assert len(norms) == 20 and set(norms) == {None if options.get("bias") else "FoldedNorm"}


def test_a_model_that_holds_its_modules_elsewhere():
    """The models of ``bcos`` keep a list of their modules with an explanation mode."""
    model = ready(resnet18(norm_layer=NORM, num_classes=7))
    x = torch.rand(2, 6, 24, 24).double()
    with model.explanation_mode():
        model(x)
    folded = bk.fold(model)
    with folded.explanation_mode():
        a = (leaf := x.clone().requires_grad_(), folded(leaf))
    assert (grad(a[1][:, 0].sum(), leaf)[0] - outcome(model, x)[1]).norm() < 1e-11 * outcome(model, x)[1].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_its_error_is_that_of_the_model(dtype):
    model = ready(resnet18(norm_layer=NORM, num_classes=7), dtype=torch.float32).to(dtype)
    folded, exact = bk.fold(model), copy.deepcopy(model).double()
    errors = []
    for _ in range(12):
        x = torch.rand(2, 6, 24, 24, dtype=dtype)
        true = outcome(exact, x.double())
        errors.append(
            [
                [((t.double() - e).norm() / e.norm()).item() for t, e in zip(outcome(m, x), true, strict=True)]
                for m in (folded, model)
            ]
        )
    ours, theirs = torch.tensor(errors).median(0).values
    assert (ours <= 1.1 * theirs).all(), (ours, theirs)


# ------------------------------------------------------------------------------------------------ what stays


def read_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = pair()

        def forward(self, x):
            y = self.layers[0](x)
            return self.layers[1](y) + y

    return Twice()


def used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.first, self.second = M.BcosConv2d(6, 6, 1), NORM(6), NORM(6)

        def forward(self, x):
            return self.second(self.layer(self.first(self.layer(x))))

    return Twice()


def shared():
    layer, norm = M.BcosConv2d(6, 6, 1), NORM(6)
    return nn.ModuleList([nn.Sequential(layer, norm), nn.Sequential(layer, NORM(6))])


class Untraceable(nn.Module):
    """Its forward depends on the values of its input."""

    def __init__(self):
        super().__init__()
        self.block, self.layer, self.norm = pair(), M.BcosConv2d(5, 5, 1), NORM(5)

    def forward(self, x):
        y = self.layer(self.block(x))
        return self.norm(y) if x.sum() > -1 else y


UNKNOWN = "no B-cos layer is known whose output it reads alone"


@pytest.mark.parametrize(
    "model, reason",
    [
        (lambda: pair(N.BatchNormUncentered2d(8)), "it has a bias"),
        (lambda: pair(b=1.5), "b of the layer before it is 1.5, neither 1 nor 2"),
        (lambda: pair(N.NoBias(N.GroupNormUncentered2d)(4, 8)), "no uncentered batch norm"),
        (lambda: pair(max_out=2), "a factor is negative"),
        (lambda: pair(NORM(8, track_running_stats=False)), "it has no running variance"),
        (read_twice, UNKNOWN),
        (used_twice, UNKNOWN),
    ],
)
def test_norms_that_stay(model, reason):
    check(ready(model()), reason)


def test_a_norm_whose_factors_are_not_finite():
    model = ready(pair())
    model[1].weight.data[0] = float("inf")
    assert bk.fold(model).folding.rows[1].reason == "its factors are not finite"


def test_a_forward_that_depends_on_values():
    """It may do anything with what it calls, so nothing is folded; another module of the model is."""
    reason = "torch.fx cannot trace the forward that calls it: TraceError: "
    with pytest.raises(ValueError, match=reason):
        bk.fold(ready(Untraceable()))
    folded = bk.fold(model := ready(nn.Sequential(Untraceable(), bk.BcosConv2d(5, 5, 1))))
    assert max(differences(folded, model, torch.rand(2, 6, 24, 24).double())) < 1e-11
    assert [row.reason.startswith(reason) for row in folded.folding.rows] == [True] * 5 + [False]


def test_modules_at_several_places():
    folded = bk.fold(shared().eval())
    assert folded[0][0] is folded[1][0] and {row.became for row in folded.folding.rows} == {None, "BcosConv2d"}


def test_a_forward_of_the_instance():
    model = ready(pair())
    model.forward = lambda x: model[0](x)
    with pytest.raises(ValueError, match="the forward that calls it was assigned on the instance"):
        bk.fold(model)


def test_a_class_derived_from_our_layers():
    class Mine(bk.BcosConv2d):
        pass

    model = nn.Sequential(Mine(6, 8, 3), NORM(8), bk.BcosConv2d(8, 5, 3))
    assert "class Mine is derived" in check(ready(model), "stays as it is").folding.rows[0].reason


@pytest.mark.parametrize("place", [0, 1])
def test_hooks(place):
    model = ready(pair())
    model[place].register_forward_hook(lambda *args: None)
    assert "hooks" in check(model, "stays as it is" if place == 0 else "hooks").folding.rows[place].reason


@pytest.mark.parametrize("b", [1, 1.5, 2])
def test_layers_of_every_family(b, monkeypatch):
    """Each of them is folded with equal results, or stays with a reason."""
    families.publish(monkeypatch)
    reasons = set()
    for name, layer in families.layers(b).items():
        layer.eval()
        try:
            folded = bk.fold(layer)
        except ValueError as error:
            reasons.add(str(error).rpartition("1: ")[2])
            continue
        x = families.example(layer)
        for explain in (False, True):
            ours, theirs = (families.outcome(which, x, explain) for which in (folded, layer))
            for key in ("y", "dx"):
                assert (ours[key] - theirs[key]).norm() <= 1e-12 * theirs[key].norm(), name
    known = ("is the late one", "is not switched by set_explanation_mode", "it adds an ε", "its ε are not", "‖w‖ is")
    known += ("its output is divided by",)
    assert all(any(text in reason for text in known) for reason in reasons), reasons
    assert all(any(text in reason for reason in reasons) for text in known[:2])


def test_options_and_modes_stay():
    model = bk.accelerate(ready(pair(), dtype=torch.float32), out_dtype=torch.bfloat16, backend="reference")
    model[0].set_explanation_mode(True)
    folded = pickle.loads(pickle.dumps(bk.fold(model)))
    assert folded[0].out_dtype is torch.bfloat16 and folded[0].backend == "reference" and folded[0].detach
    assert not folded[3].detach and "FoldedNorm" in folded.folding.table()


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize(
    "layer, shape",
    [
        (lambda: M.BcosConv2d(6, 8, 3), (1, 6, 5, 5)),
        (lambda: M.BcosLinear(6, 8, b=1.5), (3, 6)),
        (lambda: bk.BcosLinear(6, 8), (2, 3, 6)),
    ],
)
def test_a_layer_alone(layer, shape, accelerated):
    """The ε of a linear layer's norm is not that of a convolution's, which shows in small inputs."""
    layer = layer().eval().double()  # in float32 outputs near 0 would differ by as much
    if accelerated:
        bk.accelerate(layer)
    x = torch.rand(shape, dtype=torch.float64) * 1e-3
    torch.testing.assert_close(bk.fold(layer)(x), layer(x), rtol=1e-5, atol=0)


def test_a_layer_whose_epsilons_were_changed():
    layer = bk.BcosConv2d(6, 8, 3).eval().double()
    layer.norm_eps = (1e-2, 0.0)
    with pytest.raises(ValueError, match="its ε are not those"):
        bk.fold(layer)


def test_a_norm_behind_a_linear_layer():
    """The channels of the norm are not the outputs of the layer, although there are as many."""
    model = ready(nn.Sequential(bk.BcosLinear(6, 6), NORM(6)), size=6)
    folded = bk.fold(model)
    assert max(differences(folded, model, torch.rand(2, 6, 6, 6).double())) < 1e-11
    assert "the layer before it is linear" in folded.folding.rows[1].reason


def test_within_inference_mode():
    model = ready(pair())
    with torch.inference_mode():
        folded = bk.fold(model)
    assert max(differences(folded, model, torch.rand(2, 6, 9, 9).double())) < 1e-11


def test_it_cannot_be_trained():
    folded = bk.fold(ready(pair())).train()
    with pytest.raises(RuntimeError, match=r"a folded network cannot be trained.*call eval\(\)"):
        folded(torch.rand(2, 6, 9, 9).double())


@pytest.mark.parametrize("strict", [True, False])
def test_state_dicts(strict):
    """Those of folded copies are loaded; that of a model that is not folded would be taken for folded weights."""
    first, second = ready(pair()), ready(pair())
    folded, other = bk.fold(first), copy.deepcopy(bk.fold(second))
    x = torch.rand(2, 6, 9, 9).double()
    with pytest.raises(RuntimeError, match=r"0\.linear\.weight is of a model that is not folded"):
        folded.load_state_dict(second.state_dict(), strict=strict)
    assert max(differences(folded, first, x)) < 1e-11
    assert not folded.load_state_dict(other.state_dict(), strict=strict).missing_keys
    assert max(differences(folded, second, x)) < 1e-11


def test_a_pruned_model_is_refused_until_its_pruning_is_permanent():
    model = ready(pair())
    prune.l1_unstructured(model[0].linear, "weight", 0.5)
    x = torch.rand(2, 6, 9, 9).double()
    y = model(x)
    with pytest.raises(ValueError, match=r"weight of 0\.linear is computed from other tensors.*prune\.remove"):
        bk.fold(model)
    prune.remove(model[0].linear, "weight")
    assert (bk.fold(model)(x) - y).norm() <= 1e-12 * y.norm() > 0


@pytest.mark.parametrize(
    "model, error, text",
    [
        (3, TypeError, "model=3"),
        (pair(), ValueError, "model: Sequential is in training mode: call model.eval"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)).eval(), ValueError, "has no B-cos layer that can be folded: it has none"),
    ],
)
def test_bad_input(model, error, text):
    with pytest.raises(error, match=text):
        bk.fold(model)
