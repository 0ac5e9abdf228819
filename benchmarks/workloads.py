"""The layers that the benchmarks time, read from the reference's models by forward hooks."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bcos_kernels.compat import import_reference

__all__ = ["BATCH", "Layer", "MODELS", "OTHERS", "layers"]

BATCH = 8
MODELS = {
    "resnet50": ("resnet50", "ResNet-50 convolutions"),
    "vit_s": ("simple_vit_s_patch16_224", "ViT-S linears"),
    "convnext_t": ("convnext_tiny", "ConvNeXt-T depthwise"),
}
"""Short name -> (entry point of ``bcos.models.pretrained``, title of the group of layers taken from it)."""
OTHERS = "ConvNeXt-T other convolutions"


@dataclass(frozen=True)
class Layer:
    """One distinct B-cos layer of a model with the input that the model gives it."""

    model: str
    kind: str
    """``linear`` or ``conv2d``."""
    input_shape: tuple[int, ...]
    out_features: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1

    @property
    def name(self) -> str:
        """Such as ``resnet50/56x56-64-k3s1-64`` or ``vit_s/1568-384-1536``."""
        if self.kind == "linear":
            return f"{self.model}/{self.input_shape[0]}-{self.input_shape[1]}-{self.out_features}"
        _, channels, height, width = self.input_shape
        depthwise = "dw" if self.groups > 1 else "k"
        geometry = f"{depthwise}{self.kernel_size[0]}s{self.stride[0]}"
        return f"{self.model}/{height}x{width}-{channels}-{geometry}-{self.out_features}"

    @property
    def group(self) -> str:
        """Title of the layers that are averaged together."""
        return OTHERS if self.model == "convnext_t" and self.groups == 1 else MODELS[self.model][1]

    @property
    def taps(self) -> int:
        """Products of one output value."""
        if self.kind == "linear":
            return self.input_shape[-1]
        return self.input_shape[1] // self.groups * math.prod(self.kernel_size)

    def reference(self) -> nn.Module:
        """The layer as the reference package has it."""
        import_reference()
        from bcos.modules import BcosConv2d, BcosLinear

        if self.kind == "linear":
            return BcosLinear(self.input_shape[-1], self.out_features)
        geometry = self.kernel_size, self.stride, self.padding
        layer = BcosConv2d(self.input_shape[1], self.out_features, *geometry, groups=self.groups)
        return layer.to(memory_format=torch.channels_last)

    def plain(self) -> nn.Module:
        """The plain layer of PyTorch with weights of the same shape, the roof of every comparison."""
        if self.kind == "linear":
            return nn.Linear(self.input_shape[-1], self.out_features, bias=False)
        geometry = self.kernel_size, self.stride, self.padding
        layer = nn.Conv2d(self.input_shape[1], self.out_features, *geometry, groups=self.groups, bias=False)
        return layer.to(memory_format=torch.channels_last)

    def input(self, like: Tensor | None = None) -> Tensor:
        """Normally distributed, channels_last for a convolution; of ``like``'s dtype and device, fp32 without."""
        like = torch.empty(0) if like is None else like
        x = torch.randn(self.input_shape, dtype=like.dtype, device=like.device)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _read(model: str, batch: int) -> list[Layer]:
    """The distinct B-cos layers of one model; on the meta device nothing is computed."""
    import_reference()
    from bcos.models import pretrained
    from bcos.modules import BcosConv2d, BcosLinear

    found: dict[Layer, None] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = tuple(inputs[0].shape)
        if isinstance(module, BcosLinear):
            shape = (torch.Size(shape[:-1]).numel(), shape[-1])
            found[Layer(model, "linear", shape, module.linear.out_features)] = None
        elif isinstance(module, BcosConv2d):
            geometry = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
            found[Layer(model, "conv2d", shape, module.out_channels, *geometry, module.groups)] = None

    with torch.device("meta"):
        network = getattr(pretrained, MODELS[model][0])(pretrained=False).eval()
        for module in network.modules():
            module.register_forward_hook(note)
        with torch.no_grad():
            network(torch.empty(batch, 6, 224, 224))
    return list(found)


def layers(pattern: str = "", batch: int = BATCH, vit_batch: int | None = None, others: bool = False) -> list[Layer]:
    """Distinct convolutions of ResNet-50, linears of ViT-S, depthwise ones of ConvNeXt-T, by name.

    ``vit_batch`` is the batch of ViT-S where it is another; ``others`` adds what else ConvNeXt-T has.
    """
    convnext = _read("convnext_t", batch)
    found = _read("resnet50", batch) + _read("vit_s", vit_batch or batch) + [x for x in convnext if x.groups > 1]
    found += [x for x in convnext if others and x.groups == 1]
    return [layer for layer in found if re.search(pattern, layer.name)]
