"""What stands before and behind a converted network: six channels, their normalisation, and the bias of the logits.

Source: Arya et al., B-cosification, NeurIPS 2024 (arXiv 2411.00715), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["AddInverse", "LogitBias", "Normalize"]


class AddInverse(nn.Module):
    """Images x as ``[x, 1 - x]``: three channels become six, so that black and white are equally long vectors.

    A module, and a transform for data sets: put it behind ``ToTensor``, and in place of ``Normalize``, because a
    converted network normalises by itself.

    Args:
        dim: the dimension of the channels.

    Raises:
        TypeError: ``dim`` is not an int, or the images are not a tensor of a floating-point dtype.
        ValueError: the images have fewer than three dimensions.
    """

    def __init__(self, dim: int = -3) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim={dim!r}: an int is needed, not {type(dim).__name__}")
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[..., C, H, W]`` with values in [0, 1] -> ``[..., 2C, H, W]``."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images: a Tensor is needed, not {type(images).__name__}")
        if not images.is_floating_point():
            raise TypeError(f"images have dtype {images.dtype}: a floating-point dtype with values in [0, 1] is needed")
        if images.dim() < 3:
            raise ValueError(f"images have shape {tuple(images.shape)}: [C, H, W] or [N, C, H, W] is needed")
        return torch.cat([images, 1 - images], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Normalize(nn.Module):
    """``(x - mean) / std`` of images with six channels, as a layer of the network.

    Args:
        mean, std: six values each.
        device, dtype: of the images; ``.to()`` of the network changes both.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], device=None, dtype=None) -> None:
        super().__init__()
        self.values = tuple(map(float, mean)), tuple(map(float, std))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.empty(6, 1, 1, device=device, dtype=dtype), persistent=False)
        self._fill()

    def _fill(self) -> None:
        for buffer, values in zip((self.mean, self.std), self.values, strict=True):
            buffer.copy_(torch.tensor(values, dtype=torch.float64).view(6, 1, 1))

    def _apply(self, fn, recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        self._fill()  # rounded once to the new dtype, not twice
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[N, 6, H, W]`` -> the same shape and dtype."""
        if images.dim() < 3 or images.shape[-3] != 6:
            raise ValueError(
                f"images have shape {tuple(images.shape)}: [N, 6, H, W] is needed; "
                "bcos_kernels.AddInverse()(images) makes six channels of three"
            )
        if self.mean.is_meta and not images.is_meta:  # load_state_dict(assign=True) gave values to all but these
            self.to_empty(device=images.device).to(images.dtype)
        return ((images - self.mean) / self.std).to(images.dtype)

    def extra_repr(self) -> str:
        return "mean={}, std={}".format(*self.values)


class LogitBias(nn.Module):
    """Adds a constant to all logits, ``-log(classes - 1)``: with it, logits of 0 mean the probability 1/classes.

    Args:
        bias: the constant.
        classes: the number of classes of which it was made; None where it was given.
    """

    def __init__(self, bias: float, classes: int | None = None) -> None:
        super().__init__()
        self.logit_bias = bias
        self.classes = classes

    def forward(self, logits: Tensor) -> Tensor:
        """Logits of any shape -> the same shape.

        Raises:
            TypeError: the network returns something else than a tensor.
            ValueError: it returns another number of logits than the classes of which the bias was made.
        """
        if not isinstance(logits, Tensor):
            what = type(logits).__name__
            raise TypeError(f"the network returns {what}, not a tensor of logits: convert it with logit_bias=None")
        if self.classes is not None and self.classes not in logits.shape[1:]:
            raise ValueError(
                f"logit_bias='classes' took {self.classes} classes from the layer that the network names last, and the "
                f"network returns the shape {tuple(logits.shape)}: convert it with logit_bias=-math.log(classes - 1)"
            )
        return logits + self.logit_bias

    def extra_repr(self) -> str:
        return f"logit_bias={self.logit_bias}"
