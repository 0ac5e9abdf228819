"""The demo's images: the handwritten digits and the two photographs that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Digits", "load_digits", "load_photographs"]

SIDE = 16
TEST_SIZE = 360


@dataclass(frozen=True)
class Digits:
    """Images ``[N, 6, SIDE, SIDE]`` in [0, 1], fp32, channels_last; labels ``[N]``; and a test part."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """The 1797 digits, 8x8, upsampled; a pixel is [r, g, b, 1-r, 1-g, 1-b], as B-cos networks read images."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    bunch = load()
    grey = torch.tensor(bunch.images / bunch.images.max(), dtype=torch.float32).unsqueeze(1)
    grey = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
    images = torch.cat([grey, 1 - grey], 1).contiguous(memory_format=torch.channels_last)
    labels = torch.tensor(bunch.target)
    # the split is the same for every seed, so that accuracies of different seeds compare
    train, test = train_test_split(range(len(labels)), test_size=TEST_SIZE, random_state=0, stratify=bunch.target)
    return Digits(images[train], labels[train], images[test], labels[test])


def load_photographs() -> dict[str, np.ndarray]:
    """Name -> pixels ``[H, W, 3]`` of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    names = [name.rsplit("/", 1)[-1].rsplit("\\", 1)[-1].split(".")[0] for name in bunch.filenames]
    return dict(zip(names, bunch.images, strict=True))
