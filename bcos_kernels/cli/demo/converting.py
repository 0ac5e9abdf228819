"""A plain network learns to tell patches of two photographs apart, is converted, fine-tuned, and explains itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...conversion import AddInverse, convert
from ...conversion.options import IMAGENET

__all__ = ["HEIGHT", "WIDTH", "Fine", "explain_photographs", "fine_tune"]

PATCH, BATCH = 48, 32
HEIGHT, WIDTH = 212, 320
"""Of the photographs."""
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Fine:
    """One image, and what its pixels contribute to the logit of each photograph."""

    image: Tensor
    """``[3, H, W]`` in [0, 1]."""
    contributions: list[Tensor]
    """For each photograph ``[H, W]``."""
    picture: np.ndarray
    """The explanation of the predicted photograph as RGBA pixels ``[H, W, 4]``."""


def fine_tune(photographs: list[Tensor], steps: tuple[int, int], advance: Callable[[], None]) -> nn.Module:
    """A converted network that tells patches of photographs ``[1, 3, H, W]`` apart.

    A plain network is trained for ``steps[0]`` steps; it is converted and fine-tuned for ``steps[1]``. ``advance()`` is
    called after each step.
    """

    def stage(before: int, after: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        return [conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

    stages = [*stage(3, 32, 2), *stage(32, 64, 2), *stage(64, 64, 1), *stage(64, 64, 1), *stage(64, 128, 2)]
    head = nn.Conv2d(128, len(photographs), 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    plain = nn.Sequential(*stages, *head)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    _train(plain, lambda images: (images - mean) / std, photographs, steps[0], advance)
    converted = convert(plain)
    _train(converted, AddInverse(), photographs, steps[1], advance)
    return converted


def _train(network: nn.Module, transform: Callable, photographs: list[Tensor], steps: int, advance: Callable) -> None:
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps)
    for _ in range(steps):
        images, labels = _patches(photographs)
        truth = F.one_hot(labels, len(photographs)).float()
        loss = F.binary_cross_entropy_with_logits(network(transform(images)), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        advance()
    network.eval()


def _patches(photographs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``BATCH`` patches of one to two times the side ``PATCH``, scaled to it, and the photographs they are from."""
    labels = torch.randint(len(photographs), (BATCH,))
    found = []
    for label in labels.tolist():
        photograph = photographs[label]
        side = int(torch.randint(PATCH, 2 * PATCH + 1, ()))
        top, left = (int(torch.randint(size - side + 1, ())) for size in photograph.shape[-2:])
        patch = photograph[..., top : top + side, left : left + side]
        found.append(F.interpolate(patch, size=(PATCH, PATCH), mode="bilinear", antialias=True))
    return torch.cat(found), labels


def explain_photographs(network: Any, photographs: list[Tensor]) -> list[Fine]:
    """Explanations of two photographs, and of both of them twice in one image."""
    from bcos.common import gradient_to_image

    halves = [F.interpolate(p, scale_factor=0.5, mode="bilinear", antialias=True) for p in photographs]
    both = torch.cat([torch.cat(halves, 3), torch.cat(halves[::-1], 3)], 2)
    explained = []
    for image in (*photographs, both):
        six = AddInverse()(image)
        found = network.explain(six)
        picture = gradient_to_image(six[0], found["dynamic_linear_weights"][0], smooth=9)
        maps = [network.explain(six, idx=i)["contribution_map"][0] for i in range(len(photographs))]
        explained.append(Fine(image[0], maps, picture))
    return explained
