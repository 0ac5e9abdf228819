"""Beyond single layers: the bytes a stack of layers saves for backward, and a ResNet-50 training step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_kernels
from bcos_kernels.compat import import_reference
from bcos_kernels.demo.measure import saved_bytes

from .contenders import error, refusal
from .timing import interleave, ratios, summarise
from .workloads import BATCH

__all__ = ["resnet50_step", "saved_by_stack", "stacks"]

DEPTH = 6


def stacks(size: int, batch: int, like: Tensor) -> tuple[Tensor, dict[str, nn.Module]]:
    """The input of ``DEPTH`` bottlenecks of ResNet-50 (convolutions alone) and the contenders, as ``like`` is."""
    import_reference()
    from bcos.modules import BcosConv2d

    def stack(conv: Callable[..., nn.Module]) -> nn.Module:
        block = (512, 128, 1, 0), (128, 128, 3, 1), (128, 512, 1, 0)
        layers = [conv(i, o, k, padding=p, bias=False) for _ in range(DEPTH) for i, o, k, p in block]
        return nn.Sequential(*layers).to(like.device, like.dtype).to(memory_format=torch.channels_last)

    x = torch.randn(batch, 512, size, size, dtype=like.dtype, device=like.device)
    x = x.contiguous(memory_format=torch.channels_last)
    reference = stack(BcosConv2d)
    return x, {
        "plain": stack(nn.Conv2d),
        "reference": reference,
        "ours": bcos_kernels.accelerate(copy.deepcopy(reference)),
    }


def saved_by_stack(size: int = 28, batch: int = BATCH, like: Tensor | None = None) -> dict[str, float]:
    """Bytes kept for the backward of a stack of layers, by contender; on the CPU in fp32 unless ``like`` says more.

    Neither parameters nor the stack's output count: both are alive without autograd as well.
    """
    x, contenders = stacks(size, batch, torch.empty(0) if like is None else like)
    found: dict[str, float] = {}
    for name, module in contenders.items():
        excluded = list(module.parameters())

        def call(module=module, excluded=excluded) -> Tensor:
            excluded.append(module(x))
            return excluded[-1]

        found[name] = saved_bytes(call, excluded)
    return found | {"ours/plain": found["ours"] / found["plain"]}


def resnet50_step(seconds: float, batch: int = BATCH) -> dict:
    """Times of a ResNet-50 training step (forward, loss, backward, SGD), the reference's and accelerated."""
    import_reference()
    from bcos.models import pretrained

    reference = pretrained.resnet50(pretrained=False).to(memory_format=torch.channels_last).train()
    ours = bcos_kernels.accelerate(copy.deepcopy(reference))
    images = torch.rand(batch, 6, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = F.one_hot(torch.randint(1000, (batch,)), 1000).float()

    def loss_of(model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype
        return F.binary_cross_entropy_with_logits(model(images.to(dtype)), labels.to(dtype))

    def gradients(model: nn.Module) -> list[Tensor]:
        # as one vector: which of its 160 parts has the largest error is chance
        parts = torch.autograd.grad(loss_of(model), list(model.parameters()))
        return [torch.cat([part.flatten() for part in parts])]

    exact = gradients(copy.deepcopy(reference).double())
    errors = [error(gradients(model), exact)[0] for model in (ours, reference)]
    del exact
    row = {"model": "resnet50", "batch": batch, "measure": "training step", "errors": errors}
    reason = refusal(errors[:1], errors[1:], images.dtype)
    if reason is not None:
        return row | {"refused": {"ours": reason}}

    def step(model: nn.Module) -> Callable[[], object]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def call() -> None:
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()

        return call

    times = interleave({"reference": step(reference), "ours": step(ours)}, seconds)
    return row | {
        "seconds": {name: summarise(samples) for name, samples in times.items()},
        "ratios": {"reference/ours": ratios(times["reference"], times["ours"])},
    }
