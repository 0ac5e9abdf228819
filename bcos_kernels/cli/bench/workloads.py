"""The layers that the benchmarks time, read from the reference's models by forward hooks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor, nn

from ...compat import import_reference
from ...transform import Spec

__all__ = ["IMAGE", "MODELS", "TRANSFORMERS", "Workload", "network", "workloads"]

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
class Workload:
    """One distinct B-cos layer of the models: its spec, and the shapes of its input and its weight."""

    model: str
    """The first model that has the layer."""
    spec: Spec
    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    models: tuple[str, ...] = field(default=(), compare=False)
    """Every model that has the layer."""
    batch: int = field(default=0, compare=False)
    """Number of images in the model's input; 0 for a workload that is read from no model."""

    @property
    def name(self) -> str:
        """Such as ``resnet50/56x56-64-k3s1-64`` or ``vit_s/1568-384-1536``."""
        s = self.spec
        parts = ["x".join(map(str, self.x_shape[2:])) or self.x_shape[0], self.x_shape[1]]
        if not s.is_linear:
            kind = "k" if s.groups == 1 else "dw" if s.groups == self.x_shape[1] else f"g{s.groups}k"
            parts.append(f"{kind}{self.weight_shape[2]}s{s.stride[0]}")
        parts.append(self.out_features)
        unusual = {"d": (s.dilation[:1], (1,)), "b": ((s.b,), (2,)), "max": ((s.max_out,), (1,))}
        parts += [f"{key}{value[0]:g}" for key, (value, usual) in unusual.items() if value and value != usual]
        return f"{self.model}/" + "-".join(map(str, parts))

    @property
    def group(self) -> str:
        """Title of the model, over whose layers the reports average."""
        return MODELS[self.model][1] if self.model in MODELS else self.model

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

    def _built(self, linear: type[nn.Module], conv2d: type[nn.Module], **options) -> nn.Module:
        s = self.spec
        if s.is_linear:
            return linear(self.x_shape[1], self.out_features, **options)
        geometry = self.weight_shape[2:], s.stride, s.padding, s.dilation[0], s.groups
        layer = conv2d(self.x_shape[1], self.out_features, *geometry, **options)
        return layer.to(memory_format=torch.channels_last)

    def reference(self) -> nn.Module:
        """The layer of the reference package."""
        import_reference()
        from bcos.modules import BcosConv2d, BcosLinear

        return self._built(BcosLinear, BcosConv2d, b=self.spec.b, max_out=self.spec.max_out)

    def plain(self) -> nn.Module:
        """PyTorch's plain layer with as many outputs, the floor of every comparison."""
        return self._built(nn.Linear, nn.Conv2d, bias=False)

    def input(self, like: Tensor | None = None) -> Tensor:
        """A normally distributed x with the dtype and the device of ``like``, by default fp32 on the CPU.

        The input of a convolution is channels_last.
        """
        like = torch.empty(0) if like is None else like
        x = torch.randn(self.x_shape, dtype=like.dtype, device=like.device)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def resized(self, batch: int, image: int) -> Workload:
        """The same layer in a model whose input is ``[batch, 6, image, image]``."""
        if not self.spec.is_linear:
            height, width = (size * image // IMAGE for size in self.x_shape[2:])
            return replace(self, x_shape=(batch, self.x_shape[1], height, width), batch=batch)
        rows = self.x_shape[0] // self.batch * batch
        tokens = rows * image**2 // IMAGE**2 if self.x_shape[0] > self.batch else rows
        return replace(self, x_shape=(tokens, self.x_shape[1]), batch=batch)


def network(model: str) -> nn.Module:
    """The reference's model with random weights; ``model`` is one of ``MODELS``."""
    import_reference()
    from bcos.models import pretrained

    return getattr(pretrained, MODELS[model][0])(pretrained=False)


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


@cache
def _on_meta(model: str) -> nn.Module:
    with torch.device("meta"):
        return network(model).eval()


@cache
def _read(model: str, batch: int, image: int) -> tuple[Workload, ...]:
    """The distinct B-cos layers of one model; on the meta device nothing is computed."""
    import_reference()
    from bcos.modules import BcosConv2d, BcosLinear

    found: dict[Workload, None] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape, options = tuple(inputs[0].shape), {"b": module.b, "max_out": module.max_out}
        if isinstance(module, BcosLinear):
            shape = (torch.Size(shape[:-1]).numel(), shape[-1])
        else:
            options |= {name: _pair(getattr(module, name)) for name in ("stride", "padding", "dilation")}
            options["groups"] = module.groups
        weight_shape = tuple(module.linear.weight.shape)
        found[Workload(model, Spec(**options), shape, weight_shape, batch=batch)] = None

    built = _on_meta(model)
    layers = (module for module in built.modules() if isinstance(module, (BcosConv2d, BcosLinear)))
    hooks = [module.register_forward_hook(note) for module in layers]
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
    """The distinct B-cos layers of ``models`` whose name matches; each is named after the first model that has it.

    ``transformer_batch`` is the batch of ``TRANSFORMERS``, by default the same.
    """
    found: dict[Workload, Workload] = {}
    for model in models:
        for layer in _read(model, (model in TRANSFORMERS and transformer_batch) or batch, image):
            kind = replace(layer, model="")
            first = found.get(kind, layer)
            found[kind] = replace(first, models=(*first.models, model))
    return [layer for layer in found.values() if re.search(pattern, layer.name)]
