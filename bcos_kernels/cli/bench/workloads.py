"""The layers and norms that the benchmarks time, read from the reference's models by forward hooks."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ...compat import import_reference
from ...core.formats import channels_last
from ...modules import BcosConv1d, BcosConv3d, BcosLayer
from ...transform import Spec
from ..terminal import entry_point

__all__ = ["IMAGE", "MODELS", "OF_AXES", "TRANSFORMERS", "Layer", "Norm", "Workload", "network", "workloads"]

IMAGE = 224
"""Height and width of the images."""
MODELS = {
    "resnet50": ("resnet50", "ResNet-50"),
    "vit_s": ("simple_vit_s_patch16_224", "ViT-S"),
    "convnext_t": ("convnext_tiny", "ConvNeXt-T"),
    "resnext50": ("resnext50_32x4d", "ResNeXt-50"),
    "densenet121": ("densenet121", "DenseNet-121"),
    "vgg11": ("vgg11_bnu", "VGG-11"),
    "vitc_s": ("vitc_s_patch1_14", "ViTC-S"),
}
"""Name -> (entry point of ``bcos.models.pretrained``, title), most important first."""
TRANSFORMERS = ("vit_s", "vitc_s")


@dataclass(frozen=True)
class Workload(ABC):
    """One distinct module of the models, with the shape of its input."""

    model: str
    """The first model that has the module."""
    x_shape: tuple[int, ...]
    models: tuple[str, ...] = field(default=(), compare=False, kw_only=True)
    """Every model that has the module."""
    batch: int = field(default=0, compare=False, kw_only=True)
    """Number of images in the model's input; 0 for a workload that is read from no model."""

    @property
    def name(self) -> str:
        """Such as ``resnet50/56x56-64-k3s1-64``, ``resnet50/norm-56x56-64`` or ``vit_s/1568-384-1536``."""
        size = "x".join(map(str, self.x_shape[2:])) or str(self.x_shape[0])
        return f"{self.model}/{self._named(size)}"

    @abstractmethod
    def _named(self, size: str) -> str:
        """The name without the model."""

    @property
    def group(self) -> str:
        """Title of the model, over whose layers the reports average."""
        return MODELS[self.model][1] if self.model in MODELS else self.model

    @property
    @abstractmethod
    def values(self) -> int:
        """Number of values that the plain module's forward reads and writes at least."""

    @property
    @abstractmethod
    def products(self) -> int:
        """Number of products that the plain module's forward forms."""

    @abstractmethod
    def reference(self) -> nn.Module:
        """The module of the reference package."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """PyTorch's plain module with as many outputs, the floor of every comparison."""

    def input(self, like: Tensor | None = None) -> Tensor:
        """A normally distributed x with the dtype and the device of ``like``, by default fp32 on the CPU.

        That of images with two and three axes is channels_last.
        """
        like = torch.empty(0) if like is None else like
        x = torch.randn(self.x_shape, dtype=like.dtype, device=like.device)
        return channels_last(x)

    def resized(self, batch: int, image: int) -> Workload:
        """The same module in a model whose input is ``[batch, 6, image, image]``."""
        if len(self.x_shape) == 4:
            height, width = (size * image // IMAGE for size in self.x_shape[2:])
            return replace(self, x_shape=(batch, self.x_shape[1], height, width), batch=batch)
        rows = self.x_shape[0] // self.batch * batch
        tokens = rows * image**2 // IMAGE**2 if self.x_shape[0] > self.batch else rows
        return replace(self, x_shape=(tokens, self.x_shape[1]), batch=batch)


@dataclass(frozen=True)
class Layer(Workload):
    """One distinct B-cos layer of the models: its spec, and the shape of its weight."""

    spec: Spec
    weight_shape: tuple[int, ...]

    def _named(self, size: str) -> str:
        s = self.spec
        parts: list[object] = [size, self.x_shape[1]]
        if not s.is_linear:
            kind = "k" if s.groups == 1 else "dw" if s.groups == self.x_shape[1] else f"g{s.groups}k"
            parts.append(f"{kind}{self.weight_shape[2]}s{s.stride[0]}")
        parts.append(self.out_features)
        unusual = {"d": (s.dilation[:1], (1,)), "b": ((s.b,), (2,)), "max": ((s.max_out,), (1,))}
        parts += [f"{key}{value[0]:g}" for key, (value, usual) in unusual.items() if value and value != usual]
        return "-".join(map(str, parts))

    @property
    def out_features(self) -> int:
        """Features or channels of y."""
        return self.weight_shape[0] // self.spec.max_out

    @property
    def outputs(self) -> int:
        """Number of values of y."""
        s = self.spec
        sizes = zip(self.x_shape[2:], self.weight_shape[2:], s.stride, s.padding, s.dilation, strict=True)
        return math.prod(
            ((size + 2 * p - d * (k - 1) - 1) // step + 1 for size, k, step, p, d in sizes),
            start=self.x_shape[0] * self.out_features,
        )

    @property
    def values(self) -> int:
        return math.prod(self.x_shape) + math.prod(self.weight_shape) + self.outputs

    @property
    def products(self) -> int:
        return self.outputs * self.spec.max_out * math.prod(self.weight_shape[1:])

    def _built(self, *kinds: type[nn.Module], **options) -> nn.Module:
        """The layer; ``kinds`` are the classes of linear layers and of convolutions with one, two and three axes."""
        s, kind = self.spec, kinds[len(self.weight_shape) - 2]
        if s.is_linear:
            return kind(self.x_shape[1], self.out_features, **options)
        geometry = self.weight_shape[2:], s.stride, s.padding, s.dilation[0], s.groups
        layer = kind(self.x_shape[1], self.out_features, *geometry, **options)
        for parameter in layer.parameters():
            parameter.data = channels_last(parameter.data)
        return layer

    def reference(self) -> nn.Module:
        import_reference()
        from bcos.modules import BcosConv2d, BcosLinear

        made = self._built(BcosLinear, BcosConv1d, BcosConv2d, BcosConv3d, b=self.spec.b, max_out=self.spec.max_out)
        if isinstance(made, BcosLayer):  # the package has no such layer: the formula in PyTorch's operators
            made.backend = "reference"
        return made

    def plain(self) -> nn.Module:
        return self._built(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, bias=False)


def _of_axes(model: str, channels: int, filters: int, size: tuple[int, ...], kernel: int, groups: int = 1) -> Layer:
    axes = len(size)
    spec = Spec((1,) * axes, (kernel // 2,) * axes, (1,) * axes, groups=groups)
    return Layer(model, (8, channels, *size), spec, (filters, channels // groups, *(kernel,) * axes), batch=8)


OF_AXES = (
    _of_axes("conv1d", 64, 64, (4000,), 3), _of_axes("conv1d", 128, 128, (1000,), 9),
    _of_axes("conv1d", 256, 256, (500,), 1), _of_axes("conv1d", 128, 128, (1000,), 7, groups=128),
    _of_axes("conv3d", 6, 32, (8, 56, 56), 3), _of_axes("conv3d", 64, 64, (8, 28, 28), 3),
    _of_axes("conv3d", 128, 128, (4, 14, 14), 3), _of_axes("conv3d", 256, 64, (8, 14, 14), 1),
)  # fmt: skip
"""Layers with one axis, of the sizes of networks for sound, and with three, of those for video: no model has them."""


class PlainPositionNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the channels of images, as torchvision's ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNormUncentered2d": nn.BatchNorm2d,
    "DetachableLayerNorm": nn.LayerNorm,
    "DetachablePositionNorm2d": PlainPositionNorm,
    "PositionNormUncentered2d": PlainPositionNorm,
    "GNLayerNormUncentered2d": lambda channels: nn.GroupNorm(1, channels),
    "DetachableGNLayerNorm2d": lambda channels: nn.GroupNorm(1, channels),
}
"""A norm of the reference package -> the plain norm of as many channels."""


@dataclass(frozen=True)
class Norm(Workload):
    """One distinct norm of the models; it has weights and no biases."""

    kind: str
    """The name of its class, of ``NORMS``."""

    def _named(self, size: str) -> str:
        return f"norm-{size}-{self.x_shape[1]}"

    @property
    def group(self) -> str:
        return f"{super().group}, norms"

    @property
    def values(self) -> int:
        return 2 * math.prod(self.x_shape)

    @property
    def products(self) -> int:
        return 0

    def reference(self) -> nn.Module:
        import_reference()
        from bcos.modules import norms

        return norms.NoBias(getattr(norms, self.kind))(self.x_shape[1])

    def plain(self) -> nn.Module:
        return NORMS[self.kind](self.x_shape[1])


def network(model: str) -> nn.Module:
    """The reference's model with random weights; ``model`` is one of ``MODELS``."""
    return entry_point(MODELS[model][0])(pretrained=False)


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


@cache
def _on_meta(model: str) -> nn.Module:
    with torch.device("meta"):
        return network(model).eval()


@cache
def _read(model: str, batch: int, image: int) -> tuple[Workload, ...]:
    """The distinct B-cos layers and norms of one model; on the meta device nothing is computed."""
    import_reference()
    from bcos.modules import BcosConv2d, BcosLinear

    found: dict[Workload, None] = {}

    def note(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape: tuple[int, ...] = tuple(inputs[0].shape)
        kind = type(module).__name__
        if isinstance(module, BcosLinear) or NORMS.get(kind) is nn.LayerNorm:
            shape = (torch.Size(shape[:-1]).numel(), shape[-1])
        if kind in NORMS:
            found[Norm(model, shape, kind, batch=batch)] = None
            return
        options = {"b": module.b, "max_out": module.max_out}
        if isinstance(module, BcosConv2d):
            options |= {name: _pair(getattr(module, name)) for name in ("stride", "padding", "dilation")}
            options["groups"] = module.groups
        found[Layer(model, shape, Spec(**options), tuple(module.linear.weight.shape), batch=batch)] = None

    built = _on_meta(model)
    wanted = (m for m in built.modules() if isinstance(m, (BcosConv2d, BcosLinear)) or type(m).__name__ in NORMS)
    hooks = [module.register_forward_hook(note) for module in wanted]
    with torch.device("meta"), torch.no_grad():
        built(torch.empty(batch, 6, image, image))
    for hook in hooks:
        hook.remove()
    return tuple(found)


def workloads(
    pattern: str = "",
    batch: int = 8,
    transformer_batch: int | None = None,
    models: Iterable[str] = MODELS,
    image: int = IMAGE,
) -> list[Workload]:
    """The distinct layers and norms of ``models`` whose name matches; each is named after the first model that has it.

    ``transformer_batch`` is the batch of ``TRANSFORMERS``, by default the same. The layers of ``OF_AXES`` come last,
    with a batch of their own, and only if there is a pattern.
    """
    found: dict[Workload, Workload] = {}
    for model in models:
        for layer in _read(model, (model in TRANSFORMERS and transformer_batch) or batch, image):
            kind = replace(layer, model="")
            first = found.get(kind, layer)
            found[kind] = replace(first, models=(*first.models, model))
    every = [*found.values(), *(OF_AXES if pattern else ())]
    return [layer for layer in every if re.search(pattern, layer.name)]
