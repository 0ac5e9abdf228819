"""Explanations of one set of weights by the reference's layers and by the accelerated ones."""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from ..measure import interleave, ratio

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

    ``smooth`` is the size of the window over which the reference averages the opacity.
    """
    exact = copy.deepcopy(models[0]).double()
    leaf = image.double().requires_grad_()
    reference = exact.explain(leaf, smooth=smooth)
    target, w64 = reference["explained_class_idx"], reference["dynamic_linear_weights"]

    def call(model: nn.Module):
        # a fresh leaf: ``explain`` returns the leaf's own gradient, which a second call would overwrite
        return model.explain(image.clone().requires_grad_(), idx=target, smooth=smooth)

    results = {}

    def keep(i: int) -> None:
        results[i] = call(models[i])

    times = interleave({i: partial(keep, i) for i in (0, 1)}, 0, repeats, repeats, warm_up=1)
    maps = [results[i]["dynamic_linear_weights"] for i in (0, 1)]
    return Explained(
        image,
        tuple(results[i]["explanation"] for i in (0, 1)),
        tuple(((w - w64).norm() / w64.norm()).item() for w in maps),
        ((maps[1] - maps[0]).norm() / w64.norm()).item(),
        (times[0], times[1]),
    )


def summary(explained: list[Explained]) -> dict:
    """Largest errors and median times (with their paired ratio) over a list of images of one model."""
    times = [[t for e in explained for t in e.seconds[i]] for i in range(2)]
    return {
        "errors": tuple(max(e.errors[i] for e in explained) for i in range(2)),
        "difference": max(e.difference for e in explained),
        "seconds": tuple(statistics.median(t) for t in times),
        "ratio": ratio(*times),
    }
