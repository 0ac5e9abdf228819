"""CoDA-Nets in the bench: no package holds them, so their networks are built here from the published configurations.

Configurations: Böhle et al., CVPR 2021 (arXiv 2104.00032), the networks that its authors call 9L-S-CoDA-SQ-1000
(CIFAR-10) and 9L-L-CoDA-SQ-100000 (ImageNet, 100 classes).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...coda import DAUConv2d
from .contenders import Contender

__all__ = ["CODA_NETS", "CodaNet", "contenders"]


@dataclass(frozen=True)
class CodaNet:
    """One configuration: of every layer the outputs, the rank, the kernel and the stride."""

    title: str
    image: int
    batch: int
    """Number of images that is measured unless another one is asked for: that of the authors' training."""
    outputs: tuple[int, ...]
    ranks: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    temperature: float

    def network(self, layer: Callable[..., nn.Module]) -> nn.Sequential:
        """The network, whose layers ``layer(channels, outputs, rank, kernel, stride)`` makes."""
        channels, layers = 6, []
        for outputs, *rest in zip(self.outputs, self.ranks, self.kernels, self.strides, strict=True):
            layers.append(layer(channels, outputs, *rest))
            channels = outputs
        return nn.Sequential(*layers, _Logits(self.temperature))


CODA_NETS = {
    "coda_cifar10": CodaNet(
        "CoDA-Net, CIFAR-10", 32, 16, (16, 16, 32, 32, 32, 64, 64, 64, 10), (32, 32, 64, 64, 64, 64, 64, 64, 64),
        (3, 3, 3, 3, 3, 3, 3, 3, 1), (1, 1, 2, 1, 1, 2, 1, 1, 1), 1000.0,
    ),
    "coda_imagenet": CodaNet(
        "CoDA-Net, ImageNet", 240, 1, (16, 32, 32, 64, 64, 64, 64, 64, 100), (64, 64, 64, 128, 128, 128, 256, 256, 256),
        (7, 3, 3, 3, 3, 3, 3, 3, 3), (3, 1, 1, 2, 1, 1, 2, 1, 1), 1e5,
    ),
}  # fmt: skip
"""Name -> configuration."""


class _Logits(nn.Module):
    """The sum over positions, divided by a temperature, plus a constant bias."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3)) / self.temperature - 2.1972


class AlignmentConv2d(nn.Module):
    """The layer as its authors compute it, in PyTorch's operators: it forms the dynamic weights of all pixels."""

    def __init__(self, channels: int, outputs: int, rank: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.channels, self.outputs, self.detach = channels, outputs, False
        self.kernel, self.stride = kernel, stride
        self.projection = nn.Conv2d(channels, rank, kernel, stride, kernel // 2, bias=False)
        self.making = nn.Conv2d(rank, outputs * channels * kernel**2, 1)

    def explanation_mode(self, detach: bool = True) -> None:
        """Turns the explanation mode on or off."""
        self.detach = detach

    def forward(self, x: Tensor) -> Tensor:
        w: Any = self.making(self.projection(x))
        patches = F.unfold(x, self.kernel, padding=self.kernel // 2, stride=self.stride)
        w = w.unflatten(1, (-1, self.outputs))
        norm = w.norm(dim=1, keepdim=True)
        divisor = (1 + norm.pow(2)) / norm
        if self.detach:
            w, divisor = w.detach(), divisor.detach()
        return (patches.view(len(x), -1, 1, *w.shape[-2:]) * w).sum(1) / divisor.squeeze(1)

    def fused(self) -> DAUConv2d:
        """The layer of this package with equal weights."""
        like = self.making.weight
        made = DAUConv2d(
            self.channels, self.outputs, self.projection.out_channels, self.kernel, self.stride, device=like.device,
            dtype=like.dtype,
        )  # fmt: skip
        values = self.projection.weight, like, self.making.bias
        made.load_state_dict(dict(zip(made.state_dict(), values, strict=True)))
        return made


def contenders(name: str, ready: Callable[[nn.Module], nn.Module], wanted: Collection[str]) -> dict[str, Contender]:
    """The reference, and ours with equal weights; no plain network computes anything like them.

    ``ready`` moves a network to the device and the dtype that are measured.
    """
    reference = ready(CODA_NETS[name].network(AlignmentConv2d))
    ours = copy.deepcopy(reference)
    for at, layer in reference.named_children():
        if isinstance(layer, AlignmentConv2d):
            ours.set_submodule(at, layer.fused())
    return {"reference": Contender(reference)} | ({"ours": Contender(ours)} if "ours" in wanted else {})
