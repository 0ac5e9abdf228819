"""The layers that the benchmarks time, read from the reference's models by forward hooks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..compat import import_reference

__all__ = ["IMAGE", "MODELS", "TRANSFORMERS", "Layer", "layers", "network"]

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
class Layer:
    """One distinct B-cos layer with the input that a model gives it."""

    model: str
    """The first model that has the layer."""
    kind: str
    """``linear`` or ``conv2d``."""
    input_shape: tuple[int, ...]
    out_features: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1
    dilation: int = 1
    b: float = 2
    max_out: int = 1
    models: tuple[str, ...] = field(default=(), compare=False)
    """Every model that has it."""
    batch: int = field(default=0, compare=False)
    """Images in the model's input; 0 where it is read from no model."""

    @property
    def name(self) -> str:
        """Such as ``resnet50/56x56-64-k3s1-64`` or ``vit_s/1568-384-1536``."""
        sizes = "x".join(map(str, self.input_shape[2:])) or self.input_shape[0]
        parts = [sizes, self.input_shape[1], self._window(), self.out_features]
        parts += [f"d{self.dilation}"] if self.dilation != 1 else []
        parts += [f"b{self.b:g}"] if self.b != 2 else []
        parts += [f"max{self.max_out}"] if self.max_out != 1 else []
        return f"{self.model}/" + "-".join(str(part) for part in parts if part != "")

    def _window(self) -> str:
        if self.kind == "linear":
            return ""
        kind = "k" if self.groups == 1 else "dw" if self.groups == self.input_shape[1] else f"g{self.groups}k"
        return f"{kind}{self.kernel_size[0]}s{self.stride[0]}"

    @property
    def group(self) -> str:
        """Title of the model, of which the layers are averaged."""
        return MODELS[self.model][1] if self.model in MODELS else self.model

    @property
    def taps(self) -> int:
        """Products of one output value."""
        if self.kind == "linear":
            return self.input_shape[-1]
        return self.input_shape[1] // self.groups * math.prod(self.kernel_size)

    @property
    def outputs(self) -> int:
        """Values of y."""
        if self.kind == "linear":
            return self.input_shape[0] * self.out_features
        geometry = zip(self.input_shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        sizes = ((size + 2 * p - self.dilation * (k - 1) - 1) // s + 1 for size, k, s, p in geometry)
        return self.input_shape[0] * self.out_features * math.prod(sizes)

    def reference(self) -> nn.Module:
        """The layer as the reference package has it."""
        import_reference()
        from bcos.modules import BcosConv2d, BcosLinear

        options = {"b": self.b, "max_out": self.max_out}
        if self.kind == "linear":
            return BcosLinear(self.input_shape[-1], self.out_features, **options)
        geometry = self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        layer = BcosConv2d(self.input_shape[1], self.out_features, *geometry, **options)
        return layer.to(memory_format=torch.channels_last)

    def plain(self) -> nn.Module:
        """The plain layer of PyTorch with as many filters and as many outputs, the roof of every comparison."""
        if self.kind == "linear":
            return nn.Linear(self.input_shape[-1], self.out_features, bias=False)
        geometry = self.kernel_size, self.stride, self.padding, self.dilation, self.groups
        layer = nn.Conv2d(self.input_shape[1], self.out_features, *geometry, bias=False)
        return layer.to(memory_format=torch.channels_last)

    def input(self, like: Tensor | None = None) -> Tensor:
        """Normally distributed, channels_last for a convolution; of ``like``'s dtype and device, fp32 without."""
        like = torch.empty(0) if like is None else like
        x = torch.randn(self.input_shape, dtype=like.dtype, device=like.device)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def resized(self, batch: int, image: int) -> Layer:
        """The same layer in a model whose input is ``[batch, 6, image, image]``."""
        if self.kind == "conv2d":
            height, width = (size * image // IMAGE for size in self.input_shape[2:])
            return replace(self, input_shape=(batch, self.input_shape[1], height, width), batch=batch)
        rows = self.input_shape[0] // self.batch * batch
        tokens = rows * image**2 // IMAGE**2 if self.input_shape[0] > self.batch else rows
        return replace(self, input_shape=(tokens, self.input_shape[1]), batch=batch)


def network(model: str) -> nn.Module:
    """The reference's model of one of ``MODELS``, with random weights."""
    import_reference()
    from bcos.models import pretrained

    return getattr(pretrained, MODELS[model][0])(pretrained=False)


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _read(model: str, batch: int, image: int) -> list[Layer]:
    """The distinct B-cos layers of one model; on the meta device nothing is computed."""
    import_reference()
    from bcos.modules import BcosConv2d, BcosLinear

    found: dict[Layer, None] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = tuple(inputs[0].shape)
        options = {"b": module.b, "max_out": module.max_out, "batch": batch}
        if isinstance(module, BcosLinear):
            shape = (torch.Size(shape[:-1]).numel(), shape[-1])
            found[Layer(model, "linear", shape, module.out_features, **options)] = None
        else:
            geometry = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding), module.groups
            options["dilation"] = module.dilation
            found[Layer(model, "conv2d", shape, module.out_channels, *geometry, **options)] = None

    with torch.device("meta"):
        built = network(model).eval()
        for module in built.modules():
            if isinstance(module, (BcosConv2d, BcosLinear)):
                module.register_forward_hook(note)
        with torch.no_grad():
            built(torch.empty(batch, 6, image, image))
    return list(found)


def layers(
    pattern: str = "",
    batch: int = 8,
    transformer_batch: int | None = None,
    models: Iterable[str] = MODELS,
    image: int = IMAGE,
) -> list[Layer]:
    """The distinct B-cos layers of ``models``, those whose name matches, each named after the first that has it.

    ``transformer_batch`` is the batch of ``TRANSFORMERS`` where it is another.
    """
    found: dict[Layer, Layer] = {}
    for model in models:
        for layer in _read(model, (model in TRANSFORMERS and transformer_batch) or batch, image):
            kind = replace(layer, model="")
            first = found.get(kind, layer)
            found[kind] = replace(first, models=(*first.models, model))
    return [layer for layer in found.values() if re.search(pattern, layer.name)]
