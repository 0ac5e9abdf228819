"""Cases of the norms, and what a backend makes of them in each explanation mode."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bcos_kernels.functional import norm

CONTIGUOUS, CHANNELS_LAST, CHANNELS_LAST_3D = torch.contiguous_format, torch.channels_last, torch.channels_last_3d


@dataclass(frozen=True)
class Case:
    """One norm, apart from its dtype and from whether it is centered."""

    name: str
    x: tuple[int, ...]
    options: dict = field(default_factory=dict)
    weight: bool = True
    bias: bool = True
    given: bool = False
    format: torch.memory_format = CONTIGUOUS
    far: float = 0.5
    """The mean of x, whose standard deviation is 1."""

    def tensors(self, dtype: torch.dtype, centered: bool, seed: int = 0) -> dict[str, Tensor]:
        """x, the gradient at y, weight, bias, mean and var, as far as the case has them, on the CPU."""
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        channels = self.x[-1 if self.options.get("over") == "token" else 1]
        x = random(*self.x)
        # a gradient has a part along x and along 1, else its sums are rounding errors alone
        found = {"x": x + self.far, "grad": random(*self.x) + 0.25 * x + 0.25}
        if self.weight:
            found["weight"] = random(channels)
        if self.bias:
            found["bias"] = random(channels)
        if self.given:
            found["var"] = random(channels).square() + 0.1
            if centered:
                found["mean"] = random(channels)
        found = {name: t.to(dtype) for name, t in found.items()}
        return found | {name: found[name].contiguous(memory_format=self.format) for name in ("x", "grad")}


CASES = (
    Case("batch", (5, 6, 3, 4)),
    Case("batch_last", (3, 17, 5, 3), format=CHANNELS_LAST, bias=False),
    Case("batch_tokens", (37, 9), weight=False),
    Case("batch_given", (3, 6, 5, 3), given=True),
    Case("batch_given_last", (3, 9, 5, 3), given=True, format=CHANNELS_LAST),
    Case("all", (3, 6, 5, 3), {"over": "all"}),
    Case("all_last", (3, 6, 5, 3), {"over": "all"}, format=CHANNELS_LAST, bias=False),
    Case("all_tokens", (13, 9), {"over": "all"}, weight=False),
    Case("group", (3, 12, 5, 3), {"over": "group", "groups": 3}, bias=False),
    Case("group_last", (3, 12, 5, 3), {"over": "group", "groups": 3}, format=CHANNELS_LAST),
    Case("group_tokens", (5, 12), {"over": "group", "groups": 2}),
    Case("group_instance", (2, 5, 6, 7), {"over": "group", "groups": 5}, format=CHANNELS_LAST),
    Case("group_layer", (2, 5, 6, 7), {"over": "group"}, weight=False),
    Case("group_one_image", (1, 12, 5, 3), {"over": "group", "groups": 3}),
    Case("position", (3, 12, 5, 3), {"over": "position"}),
    Case("position_last", (3, 17, 5, 3), {"over": "position"}, format=CHANNELS_LAST, bias=False),
    Case("token", (3, 7, 33), {"over": "token"}),
    Case("3d_last", (2, 6, 3, 2, 3), format=CHANNELS_LAST_3D),
    Case("far", (5, 8, 4, 4), far=300.0),
)
BY_NAME = {case.name: case for case in CASES}


def results(
    case: Case, tensors: dict[str, Tensor], centered: bool, device: str = "cpu", **options
) -> dict[str, Tensor]:
    """y, the statistics, and the gradients in training and in the late explanation mode, on the CPU."""
    given = {name: t.detach().to(device) for name, t in tensors.items()}
    x, grad, *parameters = (given.get(name) for name in ("x", "grad", "weight", "bias"))
    leaves = {
        name: t.requires_grad_()
        for name, t in zip(("x", "weight", "bias"), (x, *parameters), strict=True)
        if t is not None
    }
    late = {"fixed_weights": False}
    statistics = {name: given[name] for name in ("mean", "var") if name in given}
    y, mean, var = norm(
        x, *parameters, centered=centered, detach=late, return_statistics=True, **statistics, **case.options, **options
    )
    found = {"y": y, "mean": mean, "var": var}
    for mode in ("training", "frozen"):
        late["fixed_weights"] = mode == "frozen"
        grads = torch.autograd.grad(y, tuple(leaves.values()), grad.to(y.dtype), retain_graph=True)
        found |= {f"d{name} {mode}": g for name, g in zip(leaves, grads, strict=True)}
    return {name: t.detach().cpu() for name, t in found.items()}
