"""What an explanation holds, and its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import _torch
from ..core.formula import accumulated

__all__ = ["Explanation", "averaged", "check_smooth", "opacity_limit", "rgba"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Explanations of N images. Pairs of images and classes have one dimension P in place of N and T."""

    images: Tensor
    """``[N, C, H, W]``, ``[N, L, D]`` or ``[N, D]``"""
    logits: Tensor
    """``[N, K]``: what ``targets`` counts in."""
    targets: Tensor
    """``[N, T]`` classes; ``[P, 2]`` pairs (image, class); ``[T, K]`` directions."""
    weights: Tensor | None
    """``[N, T, C, H, W]``: rows of the dynamic linear map, in the dtype of the images; ``[N, T, L, D]`` for tokens.
    None where they were not kept."""
    contributions: Tensor
    """``[N, T, H, W]``: the weights times the images, summed over channels; ``[N, T, L]`` for tokens, ``[N, T, D]`` for
    vectors. Their sum is the logit, but for a bias."""

    @property
    def is_ragged(self) -> bool:
        """Whether the rows are those of pairs of images and classes."""
        return self.contributions.dim() == self.images.dim() - (self.images.dim() > 2)

    def rgba(self, smooth: int = 15, alpha_percentile: float = 99.5) -> Tensor:
        """The explanations as pictures ``[N, T, H, W, 4]`` in [0, 1]; see :func:`rgba`, which has the errors, too.

        Raises:
            ValueError: the weights were not kept.
        """
        if self.weights is None:
            raise ValueError("rgba() needs the weights, and the explanation was made with weights=False")
        images = self.images.detach()
        images = images[self.targets[:, 0].to(images.device)] if self.is_ragged else images[:, None]
        return rgba(images, self.weights.detach(), smooth, alpha_percentile)

    def plot(self, smooth: int = 15, alpha_percentile: float = 99.5, names: Any = None) -> Any:
        """A figure with a row for each image and class: the image, the explanation, the contributions.

        Args:
            smooth, alpha_percentile: as in :meth:`rgba`; contributions are cut off at the same percentile.
            names: the names of the classes, a sequence or a mapping; None shows their numbers.

        Returns:
            A ``matplotlib.figure.Figure``, whose ``savefig`` writes it to a file. It needs matplotlib. Weights that are
            not those of six channels have no colours, and no column.

        Raises:
            ValueError: these are no images, or ``names`` lacks a class.
        """
        from .picture import figure

        if self.images.dim() != 4:
            shape = tuple(self.images.shape)
            raise ValueError(f"plot() needs images [N, C, H, W], and this is an explanation of inputs of shape {shape}")
        coloured = self.weights is not None and self.images.shape[1] == 6
        colours = self.rgba(smooth, alpha_percentile).flatten(0, -4) if coloured else None
        maps = self.contributions.detach().flatten(0, -3)
        return figure(self.images.detach(), self._labels(names), colours, maps, alpha_percentile)

    def _labels(self, names: Any) -> list[tuple[int, str]]:
        """The image and the label of every row."""

        def name(index: int) -> str:
            try:
                return f"class {index}" if names is None else str(names[index])
            except (KeyError, IndexError):
                raise ValueError(f"names has no name for class {index}") from None

        if self.is_ragged:
            return [(image, name(chosen)) for image, chosen in self.targets.tolist()]
        if self.targets.is_floating_point():
            return [(n, f"direction {t}") for n in range(len(self.images)) for t in range(len(self.targets))]
        return [(n, name(chosen)) for n, classes in enumerate(self.targets.tolist()) for chosen in classes]


def rgba(images: Tensor, weights: Tensor, smooth: int = 15, alpha_percentile: float = 99.5) -> Tensor:
    """The pictures ``[..., H, W, 4]`` of rows ``[..., 6, H, W]`` of the dynamic linear map, in [0, 1].

    The colours are the directions of the positive weights of a pixel, the opacity is their length where the pixel
    contributes to the class. They are those of ``gradient_to_image`` in ``bcos`` (Böhle et al., TPAMI 2024, section
    3.4).

    Args:
        images: of the weights' shape, or of one that can be expanded to it.
        weights: ``[..., 6, H, W]``.
        smooth: the odd side of the window over which the opacity is averaged; 0 leaves it as it is.
        alpha_percentile: the percentile of a picture's opacities that is shown as opaque, from 0 to 100.

    Raises:
        ValueError: an argument is not as described above.
    """
    if weights.dim() < 3 or weights.shape[-3] != 6:
        shape = tuple(weights.shape)
        raise ValueError(f"weights has shape {shape}: colours need six channels [r, g, b, 1-r, 1-g, 1-b]")
    check_smooth(smooth)
    if not 0 <= alpha_percentile <= 100:
        raise ValueError(f"alpha_percentile={alpha_percentile!r}: a number from 0 to 100 is needed")
    weights = accumulated(weights)
    contributions = (images * weights).sum(-3, keepdim=True)
    positive = (weights / weights.abs().amax(-3, keepdim=True).add_(1e-12)).clamp_(min=0)
    colours, inverse = positive[..., :3, :, :], positive[..., 3:, :, :]
    length = weights.square().sum(-3, keepdim=True).sqrt_()  # Tensor.norm takes ten times as long over this dimension
    alpha = torch.where(contributions < 0, 1e-12, length)
    if smooth:
        alpha = averaged(alpha, smooth)
    limit = opacity_limit(alpha, alpha_percentile)
    alpha = torch.where(alpha == 0, 0, alpha / limit).clip(0, 1)  # a limit of 0 would make 0 / 0 of weights that are 0
    return torch.cat([colours / (colours + inverse).add_(1e-12), alpha], -3).movedim(-3, -1)


def check_smooth(smooth: int) -> None:
    """Raises ValueError unless ``smooth`` is the side of a window with a middle, or 0."""
    if isinstance(smooth, bool) or not isinstance(smooth, int) or smooth < 0 or (smooth and smooth % 2 == 0):
        raise ValueError(f"smooth={smooth!r}: 0 or an odd positive int is needed")


def averaged(maps: Tensor, side: int) -> Tensor:
    """The means ``[..., H, W]`` over a window of this odd side at every pixel; zeros stand outside of the maps."""
    planes, pad = maps.reshape(-1, 1, *maps.shape[-2:]), side // 2
    rows = F.avg_pool2d(planes, (1, side), stride=1, padding=(0, pad))
    return F.avg_pool2d(rows, (side, 1), stride=1, padding=(pad, 0)).view(maps.shape)


def opacity_limit(alpha: Tensor, percentile: float) -> Tensor:
    """The percentile of the values of each plane ``[..., 1, H, W]``, as ``[..., 1, 1, 1]``.

    It is ``torch.quantile``, which would sort all values, of which a high percentile needs few.
    """
    planes = alpha.reshape(-1, alpha.shape[-2] * alpha.shape[-1])
    values = planes if planes.dtype in (torch.float32, torch.float64) else planes.float()
    position = _torch.rank_of_quantile(values.new_tensor(percentile / 100), values.shape[1])
    lower = int(position)
    largest = values.topk(values.shape[1] - lower).values
    upper = largest[:, -2] if largest.shape[1] > 1 else largest[:, -1]
    return torch.lerp(largest[:, -1], upper, position - lower).to(alpha.dtype).view(*alpha.shape[:-3], 1, 1, 1)
