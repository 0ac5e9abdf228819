"""Explanations of one set of weights by the reference's layers and by the accelerated ones."""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from .measure import alternate, paired_ratio

__all__ = ["Explained", "explain", "summary"]


@dataclass(frozen=True)
class Explained:
    """One image explained by two models of equal weights; each pair is (reference, accelerated)."""

    image: Tensor
    pictures: tuple[np.ndarray, np.ndarray]
    """The explanation as RGBA pixels ``[H, W, 4]``."""
    errors: tuple[float, float]
    """‖W - W64‖/‖W64‖ of the dynamic linear map W against the reference in float64."""
    difference: float
    """‖W_accelerated - W_reference‖/‖W64‖."""
    seconds: tuple[list[float], list[float]]


def explain(models: tuple[nn.Module, nn.Module], image: Tensor, repeats: int, smooth: int) -> Explained:
    """Explains the class that the reference predicts in float64; ``image`` is ``[1, 6, H, W]`` in fp32.

    ``smooth`` is the window that the reference averages the opacity over.
    """
    exact = copy.deepcopy(models[0]).double()
    leaf = image.double().requires_grad_()
    reference = exact.explain(leaf, smooth=smooth)
    target, w64 = reference["explained_class_idx"], reference["dynamic_linear_weights"]

    def call(model: nn.Module):
        # a fresh leaf: ``explain`` returns the leaf's own gradient, which a second call would overwrite
        return model.explain(image.clone().requires_grad_(), idx=target, smooth=smooth)

    for model in models:
        call(model)
    rounds = [alternate([lambda m=m: call(m) for m in models], turn) for turn in range(repeats)]
    results = [result for result, _ in rounds[-1]]
    maps = [result["dynamic_linear_weights"] for result in results]
    return Explained(
        image,
        tuple(result["explanation"] for result in results),
        tuple(((w - w64).norm() / w64.norm()).item() for w in maps),
        ((maps[1] - maps[0]).norm() / w64.norm()).item(),
        tuple([pair[i][1] for pair in rounds] for i in range(2)),
    )


def summary(explained: list[Explained]) -> dict:
    """Largest errors and median times (with their paired ratio) over a list of images of one model."""
    times = [[t for e in explained for t in e.seconds[i]] for i in range(2)]
    return {
        "errors": tuple(max(e.errors[i] for e in explained) for i in range(2)),
        "difference": max(e.difference for e in explained),
        "seconds": tuple(statistics.median(t) for t in times),
        "ratio": paired_ratio(*times),
    }
