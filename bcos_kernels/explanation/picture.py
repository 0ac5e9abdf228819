"""The figure of an explanation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["figure"]

SIDE = 2.4
"""Inches of a picture's side."""


def figure(images: Tensor, rows: list[tuple[int, str]], colours: Tensor | None, maps: Tensor, percentile: float) -> Any:
    """A figure with a row for each pair (image, label) of ``rows``.

    Args:
        images: ``[N, C, H, W]``
        colours: the explanation of each row ``[R, H, W, 4]``, or None for a figure without them.
        maps: the contributions of each row ``[R, H, W]``, shown up to ``percentile`` of their absolute values.
    """
    from matplotlib.figure import Figure

    maps = maps.float().cpu()
    shown = Figure(figsize=(SIDE * (2 + (colours is not None)), (SIDE + 0.3) * len(rows)), layout="constrained")
    axes = shown.subplots(len(rows), 2 + (colours is not None), squeeze=False)
    for row, (image, label) in enumerate(rows):
        first, *middle, last = axes[row]
        first.imshow(_pixels(images[image]))
        first.set_title(f"image {image}", fontsize=9)
        for panel in middle:
            assert colours is not None
            panel.imshow(colours[row].float().cpu().numpy())
            panel.set_title(f"explanation: {label}", fontsize=9)
        limit = max(float(np.percentile(maps[row].abs().numpy(), percentile)), 1e-30)
        last.imshow(maps[row].clamp(-limit, limit).numpy(), cmap="bwr", vmin=-limit, vmax=limit)
        last.set_title(f"contributions: {label}", fontsize=9)
        for panel in axes[row]:
            panel.set(xticks=[], yticks=[])
    return shown


def _pixels(image: Tensor) -> np.ndarray:
    """An image ``[C, H, W]`` as pixels: its first three channels, or the first one in grey, within [0, 1]."""
    image = image.float().cpu().clamp(0, 1)
    return torch.stack([image[0]] * 3, -1).numpy() if len(image) < 3 else image[:3].permute(1, 2, 0).numpy()
