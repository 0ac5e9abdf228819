"""Norms that leave their last pass to the layer before them, and the same norms that do not."""

import copy

import pytest
import torch
from norm_families import N
from torch import nn

import bcos_kernels as bk
from bcos_kernels.compat import import_reference
from bcos_kernels.core import pairs

L = import_reference().modules

LAYERS = {
    "conv3x3": lambda: L.BcosConv2d(6, 8, 3, padding=1),
    "conv1x1": lambda: L.BcosConv2d(6, 8, 1),
    "grouped": lambda: L.BcosConv2d(6, 8, 3, groups=2),
    "depthwise": lambda: L.BcosConv2d(8, 8, 3, padding=1, groups=8),
    "max_out": lambda: L.BcosConv2d(6, 8, 3, stride=2, max_out=2),
}
NORMS = {
    "batch": lambda: N.BatchNormUncentered2d(8),
    "all": lambda: N.AllNormUncentered2d(8),
}


@pytest.fixture
def formed(monkeypatch):
    """Whether each norm with the option left its last pass to the layer, in the order of their backwards."""
    found, leave = [], pairs.leave

    def counted(*args):
        outcome = leave(*args)
        found.append(outcome is not None)
        return outcome

    monkeypatch.setattr(pairs, "leave", counted)
    return found


def model(layer: str, norm: str, dtype=torch.float64, device="cpu") -> nn.Sequential:
    torch.manual_seed(3)
    made = nn.Sequential(LAYERS[layer](), NORMS[norm](), nn.Hardswish())
    for tensor in (*made[1].parameters(), *made[1].buffers()):
        if tensor.dim():
            tensor.data.uniform_(0.5, 2)
    return made.to(device, dtype)


def image(made: nn.Module, layout=torch.channels_last, seed: int = 4) -> torch.Tensor:
    like = next(made.parameters())
    x = torch.randn(2, made[0].in_channels, 9, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(like).contiguous(memory_format=layout).requires_grad_()


def gradients(made: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Those of x and of the parameters, for a loss that is not linear in the output."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    made.zero_grad()
    made(x).double().pow(3).sum().backward()
    return [x.grad, *(p.grad for p in made.parameters())]


def error(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    return max(float((f.double() - t).norm() / t.norm().clamp_min(1e-30)) for f, t in zip(found, truth, strict=True))


def check_pair(layer, norm, dtype, layout, mode, device, formed):
    """With pairs the error against float64 is no larger than without; ``mode``: training, evaluation or explanation."""
    made = model(layer, norm, dtype, device)
    explains = mode == "explanation"
    models = {
        name: bk.accelerate(copy.deepcopy(made).train(mode == "training"), pairs=name == "pairs")
        for name in ("alone", "pairs")
    }
    exact = copy.deepcopy(made).double().train(mode == "training")
    for each in (*models.values(), exact):
        for part in each[:2]:
            part.set_explanation_mode(explains)
    errors: dict[str, list[float]] = {"alone": [], "pairs": []}
    for seed in range(4):
        x = image(made, layout, seed)
        truth = gradients(exact, x.detach().double())
        found = {name: gradients(each, x) for name, each in models.items()}
        for a, b in zip(*found.values(), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()
        for name, each in found.items():
            errors[name] += [error([g], [t]) for g, t in zip(each, truth, strict=True)]
    assert formed == [True] * 4
    alone, paired = (torch.tensor(errors[name]).square().mean().sqrt() for name in ("alone", "pairs"))
    assert paired <= 1.1 * alone + torch.finfo(dtype).eps
