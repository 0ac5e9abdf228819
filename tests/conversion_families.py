"""Small networks, and their conversion written a second time: layer by layer in plain torch, the head by hand."""

import copy

import torch
import torch.nn.functional as F
from families import Bcosification
from norm_families import CastBatch, N
from torch import nn

import bcos_kernels as bk
from bcos_kernels.compat import declare_torchvision_operators_when_needed

declare_torchvision_operators_when_needed()

from torchvision import models  # noqa: E402
from torchvision.models.convnext import CNBlockConfig, LayerNorm2d  # noqa: E402
from torchvision.models.resnet import BasicBlock, Bottleneck  # noqa: E402
from torchvision.models.vgg import make_layers  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class AttentionPool2d(nn.Module):
    """CLIP's attention pool: its names, and its maths in plain torch."""

    def __init__(self, size, width, heads, outputs):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(size**2 + 1, width) / width**0.5)
        for name in ("k_proj", "q_proj", "v_proj"):
            setattr(self, name, nn.Linear(width, width))
        self.c_proj, self.num_heads = nn.Linear(width, outputs), heads

    def forward(self, x):
        x = x.flatten(2).permute(0, 2, 1)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        return attend(self, x, x)


def attend(pool, known, x, project=None):
    """The mean's attention to all tokens; the weights are formed of ``known``."""
    split = lambda t: t.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = split(pool.q_proj(known[:, :1])), split(pool.k_proj(known)), split(pool.v_proj(x))
    y = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
    return (project or pool.c_proj)(y.transpose(1, 2).flatten(1))


class ClipResNet(nn.Module):
    """A network of CLIP's kind: a stem, a block, the pool; it reads the dtype of its first weight."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True))
        self.attnpool = AttentionPool2d(4, 16, 2, 6)

    def forward(self, x):
        x = self.avgpool(self.relu1(self.bn1(self.conv1(x.type(self.conv1.weight.dtype)))))
        return self.attnpool(self.layer1(x))


def _densenet():
    return models.DenseNet(8, (2, 2), 16, num_classes=7)


def _convnext():
    return models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=7)


def _vit():
    vit = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=7)
    nn.init.normal_(vit.heads.head.weight)
    return vit


def _vgg(norm=False):
    with torch.device("meta"):
        vgg = models.VGG(nn.Identity())
    vgg.features = make_layers([4, "M", 8, "M"], norm)
    vgg.classifier = nn.Sequential(nn.Linear(8 * 49, 12), nn.ReLU(True), nn.Dropout(0.0), nn.Linear(12, 7))
    return vgg


NETWORKS = {
    "resnet": lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7),
    "resnext": lambda: models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7, groups=4, width_per_group=4),
    "densenet": _densenet,
    "convnext": _convnext,
    "vit": _vit,
    "vgg": _vgg,
    "vgg_bn": lambda: _vgg(norm=True),
    "clip": ClipResNet,
}


def network(name, dtype=torch.float64):
    """A network whose vectors and statistics are not those of a new one, in evaluation."""
    torch.manual_seed(len(name))
    made = NETWORKS[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() <= 1 or parameter.shape[0] == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for key, buffer in made.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return made


def images(count=2, size=32, dtype=torch.float64):
    return torch.rand(count, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(3))


def six(**options):
    return bk.AddInverse()(images(**options))


def normalized(x, name):
    mean, std = (CLIP_MEAN, CLIP_STD) if name == "clip" else (MEAN, STD)
    mean, std = (torch.tensor(t, dtype=x.dtype).view(3, 1, 1) for t in (mean, std))
    return (x - mean) / std


# the second conversion


class Gate(nn.Module):
    detach = False

    def set_explanation_mode(self, on):
        self.detach = on

    def forward(self, x):
        gate = (1 + torch.erf(x / 2**0.5)) / 2
        return x * (gate.detach() if self.detach else gate)


class SelfAttention(Gate):
    def __init__(self, plain):
        super().__init__()
        self.weight, self.heads, self.out = plain.in_proj_weight, plain.num_heads, layer(plain.out_proj)

    def forward(self, x, *same, **options):
        q, k, v = (F.linear(x, w).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in self.weight.chunk(3))
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        return self.out(((weights.detach() if self.detach else weights) @ v).transpose(1, 2).flatten(2)), None


class Pool(Gate):
    """CLIP's pool without biases and positions."""

    def __init__(self, plain, unpool):
        super().__init__()
        self.pool, self.unpool, self.last = plain, unpool, layer(plain.c_proj)
        for part in (plain.k_proj, plain.q_proj, plain.v_proj):
            part.bias = None

    def forward(self, x):
        x = x.flatten(2).permute(0, 2, 1)
        if self.unpool:
            y = self.last(self.pool.v_proj(x)).permute(1, 0, 2)
            norm = (y * y).sum(-1, keepdim=True).sqrt()
            return y / (norm.detach() if self.detach else norm)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        known = x.detach() if self.detach else x
        return attend(self.pool, known, x, lambda y: y @ self.last.linear.weight.T)


def layer(plain):
    """A B-cos layer with the weights of a plain one."""
    if isinstance(plain, nn.Linear):
        made = Bcosification.BcosifyLinear(plain.in_features, plain.out_features)
    else:
        made = Grouped(plain)
    made.linear = plain
    plain.bias = None
    return made


class Grouped(Bcosification._Base):
    """B-cosification's convolution, also with groups."""

    def __init__(self, plain):
        super().__init__(plain, 2, False, False)

    def calc_norms(self, x):
        conv = self.linear
        ones = x.new_ones(conv.groups, conv.weight.shape[1], *conv.kernel_size)
        squares = F.conv2d(x * x, ones, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return (squares + 1e-6).sqrt().repeat_interleave(conv.out_channels // conv.groups, 1)

    @property
    def weight(self):
        return self.linear.weight


class Batch(CastBatch):
    def set_explanation_mode(self, on):
        self.detach = on


def _norm(kind, plain, *args):
    made = kind(*args, eps=plain.eps).to(plain.weight.dtype)
    made.weight, made.bias = plain.weight, None
    for name, buffer in plain.named_buffers():
        setattr(made, name, buffer)
    return made


def _replaced(module, unpool):
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return layer(module)
    if isinstance(module, nn.BatchNorm2d):
        return _norm(Batch, module, module.num_features)
    if isinstance(module, LayerNorm2d):
        return _norm(N.DetachablePositionNorm2d, module, module.normalized_shape[0])
    if isinstance(module, nn.LayerNorm):
        return _norm(N.DetachableLayerNorm, module, module.normalized_shape)
    if isinstance(module, nn.MaxPool2d):
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
    if isinstance(module, nn.MultiheadAttention):
        return SelfAttention(module)
    if isinstance(module, AttentionPool2d):
        return Pool(module, unpool)
    kinds = {nn.GELU: Gate, nn.ReLU: nn.ReLU}
    if type(module) in kinds:
        return kinds[type(module)]()
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, unpool))
    return module


class Second(nn.Module):
    """The second conversion of a network: images of six channels -> logits without their bias."""

    def __init__(self, plain, name, unpool=False):
        super().__init__()
        plain = copy.deepcopy(plain)
        first = next(m for m in plain.modules() if isinstance(m, nn.Conv2d))
        first.weight = nn.Parameter(torch.cat([first.weight, -first.weight], 1).detach() / 2)
        first.in_channels = 6
        mean, std = (CLIP_MEAN, CLIP_STD) if name == "clip" else (MEAN, STD)
        self.mean = torch.tensor([*mean, *(1 - m for m in mean)], dtype=torch.float64).view(6, 1, 1)
        self.std = torch.tensor([*std, *std], dtype=torch.float64).view(6, 1, 1)
        self.net = self._of(_replaced(plain, unpool))

    def _of(self, p):
        """The network with its classifier in front of its pooling, where it has a classifier and a pooling."""
        if isinstance(p, models.ResNet):
            stages = p.conv1, p.bn1, p.relu, p.maxpool, p.layer1, p.layer2, p.layer3, p.layer4
            return nn.Sequential(*stages, Positions(p.fc))
        if isinstance(p, models.DenseNet):
            return nn.Sequential(p.features, nn.ReLU(), Positions(p.classifier))
        if isinstance(p, models.ConvNeXt):
            return nn.Sequential(p.features, p.classifier[0], Positions(p.classifier[2]))
        return p

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


class Positions(nn.Module):
    """A linear layer at every position, and the mean of what it gives."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def forward(self, x):
        # a 1×1 convolution has the convolution's epsilon in its norm
        x = x.permute(0, 2, 3, 1)
        l = x @ self.last.linear.weight.T  # noqa: E741
        scale = l.abs() / ((x * x).sum(-1, keepdim=True) + 1e-6).sqrt()
        return (l * (scale.detach() if self.last.detach else scale)).mean((1, 2))
