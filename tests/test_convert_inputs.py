"""What ``convert`` and its parts do not take is an error that names it; six channels, and their normalisation."""

import pytest
import torch
from conversion_families import ClipResNet, images, network, six
from families import altered
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import bcos_kernels as bk
from bcos_kernels.compat import import_reference
from bcos_kernels.modules import BcosLayer

bcos = import_reference()


class TwoFirst(nn.Module):
    """Both layers see the images."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2)

    def forward(self, images):
        return self.fine(images) + self.coarse(images)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    plain[1].register_forward_hook(lambda *args: None)
    return plain


@pytest.mark.parametrize(
    "make, options, error, message",
    [
        (lambda: 3, {}, TypeError, "model=3: a torch.nn.Module is needed"),
        (lambda: nn.Sequential(nn.ReLU()), {}, ValueError, "Sequential has no nn.Conv2d and no nn.Linear"),
        (lambda: nn.Conv2d(1, 4, 3), {}, ValueError, "its first layer Conv2d takes 1 channels: 3 or 6"),
        (lambda: nn.Sequential(nn.Linear(3, 4)), {}, ValueError, "its first layer 0 is linear"),
        (lambda: nn.Conv2d(3, 3, 3, groups=3), {}, ValueError, "has groups=3: 1 is needed"),
        (
            lambda: torch.jit.script(nn.Conv2d(3, 4, 3)),
            {},
            TypeError,
            "was compiled by TorchScript, a plain one is needed",
        ),
        (TwoFirst, {}, ValueError, "fine and coarse both take 3 channels, which no layer makes: one alone"),
        (lambda: nn.Sequential(Scaled(3, 4, 3)), {}, ValueError, "the code of its first layer 0 is not that of"),
        (lambda: nn.Sequential(bk.BcosConv2d(6, 4, 3)), {}, ValueError, "0 is a B-cos layer"),
        (lambda: nn.Sequential(bcos.modules.BcosConv2d(6, 4, 3)), {}, ValueError, "the network is one already"),
        (lambda: bk.convert(nn.Conv2d(3, 4, 3)), {}, ValueError, "BcosNetwork is a B-cos layer"),
        (lambda: altered(ClipResNet(), transform_input=True), {}, ValueError, "transform_input=True would see three"),
        (hooked, {}, ValueError, "1 has hooks, which would be lost"),
        (lambda: weight_norm(nn.Conv2d(3, 4, 3)), {}, ValueError, "has parametrizations, which would be lost"),
        (ClipResNet, {"b": 0.5}, ValueError, "b=0.5"),
        (ClipResNet, {"b": torch.tensor(2.0)}, TypeError, "a float is needed; learn_b makes parameters of it"),
        (ClipResNet, {"b": "2"}, TypeError, "b='2'"),
        (ClipResNet, {"learn_b": True}, ValueError, "learn_b=True: allowed are None, 'clamp' and 'offset'"),
        (ClipResNet, {"bias": 1}, TypeError, "bias=1: True or False is needed"),
        (ClipResNet, {"logit_bias": "none"}, ValueError, "logit_bias='none': 'classes', a finite float or None"),
        (ClipResNet, {"mean": (0.5, 0.5)}, ValueError, r"mean=\(0.5, 0.5\): three or six finite floats"),
        (ClipResNet, {"std": (1, 1, 0)}, ValueError, r"std=\(1, 1, 0\): all values must be above 0"),
        (ClipResNet, {"mean": "imagenet"}, TypeError, "mean='imagenet': three or six floats"),
        (ClipResNet, {"backend": "gpu"}, ValueError, "backend='gpu'"),
        (ClipResNet, {"out_dtype": "half"}, TypeError, "out_dtype='half'"),
        (ClipResNet, {"biases": False}, TypeError, "biases"),
    ],
)
def test_bad_input_is_named_before_anything_is_changed(make, options, error, message):
    model = make()
    before = str(model)
    with pytest.raises(error, match=message):
        bk.convert(model, **options)
    assert str(model) == before


def test_a_layer_of_three_channels_that_another_makes_is_converted():
    made = bk.convert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 3)))
    assert made(six(dtype=torch.float32)).shape[1] == 4 and isinstance(made.model[1], BcosLayer)


def test_masks_and_other_keys_are_refused():
    attention = bk.convert(network("vit")).model.encoder.layers[0].self_attention
    x = torch.rand(2, 5, 16, dtype=torch.float64)
    assert attention(x, x, x, need_weights=False)[0].shape == x.shape
    for arguments, options, message in [
        ((x, x, x.clone()), {}, "one and the same tensor"),
        ((x, x, x), {"need_weights": True}, "need_weights=True"),
        ((x, x, x), {"attn_mask": torch.zeros(5, 5)}, "attn_mask: a converted attention has no masks"),
    ]:
        with pytest.raises(ValueError, match=message):
            attention(*arguments, **options)


# six channels


def test_add_inverse():
    x = images(dtype=torch.float32)
    add = bk.AddInverse()
    assert torch.equal(add(x), bcos.data.transforms.AddInverse()(x)) and add(x[0]).shape == (6, 32, 32)
    assert torch.equal(bk.AddInverse(dim=1)(x), add(x)) and str(add) == "AddInverse(dim=-3)"
    for value, error, message in [
        (x.numpy(), TypeError, "images: a Tensor is needed, not ndarray"),
        ((255 * x).to(torch.uint8), TypeError, "images have dtype torch.uint8"),
        (x[0, 0], ValueError, r"images have shape \(32, 32\)"),
    ]:
        with pytest.raises(error, match=message):
            add(value)
    with pytest.raises(TypeError, match=r"dim=1\.0: an int is needed"):
        bk.AddInverse(1.0)


def test_normalisation_follows_the_networks_dtype_without_rounding_twice():
    converted = bk.convert(nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert converted.normalize.mean.dtype == torch.float32
    converted.double()
    assert converted.normalize.mean.flatten()[0].item() == 0.485
    assert not any("normalize" in key for key in converted.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_was_made_without_values(dtype):
    """On the device meta, as large networks are: a checkpoint assigns its tensors, and the normalisation is in none."""
    ready = bk.convert(nn.Sequential(nn.Conv2d(3, 4, 3))).to(dtype).eval()
    with torch.device("meta"):
        made = bk.convert(nn.Sequential(nn.Conv2d(3, 4, 3))).eval()
    made.load_state_dict(ready.state_dict(), assign=True)
    given = six(dtype=dtype)
    assert torch.equal(made(given), ready(given))


def test_six_channels_stay_six():
    plain = nn.Sequential(nn.Conv2d(6, 4, 3, bias=False)).double()
    converted = bk.convert(plain, b=1, mean=(0,) * 6, std=(1,) * 6, logit_bias=None)
    assert torch.allclose(converted(six()), plain(six()))
    assert isinstance(converted.model[0], BcosLayer)


class Affine(nn.Module):
    """A module of one's own that adds its bias."""

    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x + self.bias


def test_a_module_that_is_left_alone_keeps_its_bias():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), Affine(4))
    with pytest.warns(UserWarning, match="modules left alone: 1"):
        converted = bk.convert(plain, logit_bias=None)
    assert converted.model[0].linear.bias is None
    x = six(size=5, dtype=torch.float32)
    assert torch.equal(converted(x), converted.model[0](converted.normalize(x)) + 1)


class NormAct(nn.BatchNorm2d):
    """A norm whose forward reads its bias, and does more than the norm of PyTorch, as timm's BatchNormAct2d."""

    def forward(self, x):
        return nn.functional.relu(x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1))


class Held(nn.TransformerEncoderLayer):
    """Tokens of pixels, whose layer reads the weights and biases of its parts."""

    def forward(self, x):
        return super().forward(x.flatten(2).mT)


@pytest.mark.parametrize("made", [lambda: NormAct(4), lambda: Held(4, 2, 8, batch_first=True)])
def test_a_module_that_is_left_alone_keeps_the_biases_that_its_code_reads(made):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), made()).eval()
    for parameter in plain[1].parameters():
        nn.init.normal_(parameter)
    with pytest.warns(UserWarning, match="modules left alone: 1"):
        converted = bk.convert(plain, logit_bias=None)
    assert converted.model[0].linear.bias is None
    x = six(size=5, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(converted(x), plain[1](converted.model[0](converted.normalize(x))))


class Attending(nn.Module):
    """An attention in functions of torch, as those of timm are."""

    def __init__(self, function, name="qkv"):
        super().__init__()
        self.add_module(name, nn.Linear(4, 12, bias=False))
        self.proj, self.attend = nn.Linear(4, 4, bias=False), function
        self.name = name

    def forward(self, x):
        x = x.flatten(2).mT
        return self.proj(self.attend(*getattr(self, self.name)(x).chunk(3, -1))).mT


class Called(Attending):
    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, -1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v)).mT


class Gated(nn.Module):
    """A gate that a function forms of the channels' means."""

    def __init__(self):
        super().__init__()
        self.gelu = nn.GELU()
        self.fc = nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x):
        return x * self.fc(self.gelu(x)).mean((2, 3), keepdim=True).sigmoid()


ATTENTION = "it is an attention, whose weights explanations do not take for constants"
CALLS = "its forward calls {}, which explanations do not take for a constant"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Attending(nn.functional.scaled_dot_product_attention), ATTENTION),
        (Attending(nn.functional.scaled_dot_product_attention, "kv"), ATTENTION),
        (Called(None), CALLS.format("scaled_dot_product_attention")),
        (Gated(), CALLS.format("sigmoid")),
    ],
)
def test_what_a_forward_computes_by_functions_is_told(module, reason):
    """These functions make the sum of the contributions another number than the logit, without an error."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), module, nn.Flatten(), nn.Linear(36, 3, bias=False)).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, generator=generator)
    with pytest.warns(UserWarning, match="modules left alone: 1"):
        converted = bk.convert(plain.eval(), mean=(0,) * 6, logit_bias=None)
    (row,) = converted.report.left_alone
    assert (row.name, row.class_name, row.reason) == ("1", type(module).__name__, reason)
    found = bk.explain(converted, six(size=5, dtype=torch.float64)[:1])
    assert abs(found.contributions.sum() - found.logits.max()) > 1e-3 * found.logits.max().abs()
    assert not isinstance(getattr(converted.model[1], getattr(module, "name", "fc"), None), bk.BcosLinear)


class HeadFirst(nn.Module):
    """A network that names its classifier before its last convolution."""

    def __init__(self, returned):
        super().__init__()
        self.stem, self.head, self.body = nn.Conv2d(3, 4, 3), nn.Linear(8, 5), nn.Conv2d(4, 8, 3)
        self.returned = returned

    def forward(self, x):
        return self.returned(self.head(self.body(self.stem(x)).mean((2, 3))))


@pytest.mark.parametrize(
    "returned, error, message",
    [
        (nn.Identity(), ValueError, r"logit_bias='classes' took 8 classes .* returns the shape \(2, 5\)"),
        (lambda logits: {"out": logits}, TypeError, "returns dict, not a tensor of logits: .* logit_bias=None"),
    ],
)
def test_a_bias_that_is_not_that_of_the_logits(returned, error, message):
    plain, x = HeadFirst(returned), six(size=9, dtype=torch.float32)
    with pytest.raises(error, match=message):
        bk.convert(plain)(x)
    bk.convert(plain, logit_bias=None)(x)
